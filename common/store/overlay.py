"""The stores that a run trains from: its own, or its own over another's, which is only read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import compress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.store.sample_store import Found, SampleStore
from brain_align.common.store.table.summary_rows import ScorerSummary


class OverlaidStore:
    """The groups and scores of one store with those of another under them, which is never written to.

    Everything appended stands in the upper store, and the steps are the upper store's alone: they are what its own run
    has trained. Of the lower store only the groups of the first `rounds` rounds are there.
    """

    def __init__(self, upper: SampleStore, lower: "Store", rounds: int) -> None:
        self._upper = upper
        self._lower = lower
        below = lower.index()
        self._below = below.filter(pc.less(below["round"], rounds))

    @property
    def root(self) -> Path | str:
        """Of the upper store."""
        return self._upper.root

    @property
    def run_id(self) -> str:
        """Of the upper store."""
        return self._upper.run_id

    @property
    def damaged(self) -> list[str]:
        """Of both stores."""
        return [*self._upper.damaged, *self._lower.damaged]

    # -- writing -----------------------------------------------------------------------------------------------------

    def training(self) -> AbstractContextManager[None]:
        """Be the one that records steps in the upper store."""
        return self._upper.training()

    def append_groups(self, batch: pa.RecordBatch) -> int:
        """Commit groups to the upper store."""
        return self._upper.append_groups(batch)

    def append_scores(self, batch: pa.RecordBatch) -> int:
        """Commit scores to the upper store.

        Raises:
            UserError: either store has values under the scorer's name that are another scorer's.
        """
        self._lower.refuse_another_scorer(batch)
        return self._upper.append_scores(batch)

    def refuse_another_scorer(self, batch: pa.RecordBatch) -> None:
        """Of both stores."""
        self._lower.refuse_another_scorer(batch)
        self._upper.refuse_another_scorer(batch)

    def append_step(self, row: Mapping[str, Any]) -> int:
        """Commit a step to the upper store."""
        return self._upper.append_step(row)

    # -- reading -----------------------------------------------------------------------------------------------------

    def index(self) -> pa.Table:
        """The lower store's groups, then the upper's own."""
        return pa.concat_tables([self._below, self._upper.index()])

    def unscored(self, scorer: str) -> list[str]:
        """Ids of groups that neither store has that scorer's values for."""
        below = self._below["group_id"]
        lacking = pa.array(self._lower.unscored(scorer), pa.string())
        names = below.filter(pc.is_in(below, value_set=lacking)).to_pylist()
        own = self._upper.unscored(scorer)
        return list(compress(names, ~self._upper.has_scores(names, scorer))) + own

    def scorers(self) -> list[ScorerSummary]:
        """Of both stores, each for itself."""
        return [*self._lower.scorers(), *self._upper.scorers()]

    def batches(
        self,
        *,
        round_: int | None = None,
        version: int | None = None,
        group_ids: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The lower store's, then the upper's own."""
        wanted = self._below["group_id"].to_pylist() if group_ids is None else group_ids
        yield from self._lower.batches(round_=round_, version=version, group_ids=wanted, columns=columns)
        yield from self._upper.batches(round_=round_, version=version, group_ids=group_ids, columns=columns)

    def has_groups(self, group_ids: Sequence[str]) -> Found:
        """[wanted] whether either has each."""
        return self._upper.has_groups(group_ids) | self._lower.has_groups(group_ids)

    def has_scores(self, group_ids: Sequence[str], scorer: str) -> Found:
        """[wanted] whether either has each."""
        return self._upper.has_scores(group_ids, scorer) | self._lower.has_scores(group_ids, scorer)

    def has_group(self, group_id: str) -> bool:
        """Whether either has it."""
        return self._upper.has_group(group_id) or self._lower.has_group(group_id)

    def has_score(self, group_id: str, scorer: str) -> bool:
        """Whether either has it."""
        return self._upper.has_score(group_id, scorer) or self._lower.has_score(group_id, scorer)

    def groups(self, group_ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """The GROUPS rows of the given ids, in the given order."""
        upper = self._upper.has_groups(group_ids)
        return _interleaved(
            group_ids,
            upper,
            lambda names: self._upper.groups(names, columns),
            lambda names: self._lower.groups(names, columns),
        )

    def scores(self, group_ids: Sequence[str], scorer: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The SCORES rows of one scorer for the given groups, in the given order."""
        upper = self._upper.has_scores(group_ids, scorer)
        return _interleaved(
            group_ids,
            upper,
            lambda names: self._upper.scores(names, scorer, columns),
            lambda names: self._lower.scores(names, scorer, columns),
        )

    def score_batches(self) -> Iterator[pa.RecordBatch]:
        """The lower store's, of all rounds, without what the upper store has too; then the upper's."""
        for batch in self._lower.score_batches():
            doubled = np.zeros(batch.num_rows, dtype=bool)
            for scorer in batch["scorer"].unique().to_pylist():
                of_it = pc.equal(batch["scorer"], scorer).to_numpy(zero_copy_only=False)
                doubled |= of_it & self._upper.has_scores(batch["group_id"].to_pylist(), scorer)
            yield batch.filter(pa.array(~doubled)) if doubled.any() else batch
        yield from self._upper.score_batches()

    def step_batches(self) -> Iterator[pa.RecordBatch]:
        """The upper store's."""
        return self._upper.step_batches()

    def steps(self) -> list[dict[str, Any]]:
        """The upper store's."""
        return self._upper.steps()

    def step_groups(self, step: int) -> list[str] | None:
        """The upper store's."""
        return self._upper.step_groups(step)

    def recorded_after(self, step: int) -> dict[int, list[str]]:
        """The upper store's."""
        return self._upper.recorded_after(step)

    def counts(self) -> dict[str, int]:
        """Groups and scores of both (scores of all rounds), steps of the upper."""
        upper = self._upper.counts()
        scores = self._lower.counts()["scores"] + upper["scores"]
        return {"groups": self._below.num_rows + upper["groups"], "scores": scores, "steps": upper["steps"]}


Store: TypeAlias = SampleStore | OverlaidStore
"""A store that a run reads from and writes to."""

Read = Callable[[Sequence[str]], pa.Table]


def _interleaved(names: Sequence[str], is_upper: Found, upper: Read, lower: Read) -> pa.Table:
    """Rows from two stores in the order of the names."""
    if is_upper.all():
        return upper(names)
    if not is_upper.any():
        return lower(names)
    above, below = np.flatnonzero(is_upper), np.flatnonzero(~is_upper)
    rows = pa.concat_tables([upper([names[place] for place in above]), lower([names[place] for place in below])])
    return rows.take(pa.array(np.argsort(np.concatenate([above, below]))))
