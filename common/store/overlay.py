"""The stores that a run trains from: its own, or its own over another run's, which is only read."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import compress
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.store.sample_store import Found, SampleStore
from brain_align.common.store.table.summary_rows import ScorerSummary


class OverlaidStore:
    """The groups and scores of one store together with those of a lower store, which is never written to.

    All methods do what those of `SampleStore` do. Everything appended goes to the upper store, and the steps are the
    upper store's alone: they are what its own run has trained. Of the lower store only the groups of the first `rounds`
    rounds are visible.
    """

    def __init__(self, upper: SampleStore, lower: "Store", rounds: int) -> None:
        self._upper = upper
        self._lower = lower
        below = lower.index()
        self._below = below.filter(pc.less(below["round"], rounds))
        self.root, self.run_id, self.own_nulls = upper.root, upper.run_id, upper.nulls
        self.training, self.append_groups, self.append_step = upper.training, upper.append_groups, upper.append_step
        self.steps, self.step_batches = upper.steps, upper.step_batches
        self.step_groups, self.recorded_after = upper.step_groups, upper.recorded_after

    @property
    def trouble(self) -> str | None:
        """The error of a request that is being repeated; None while requests succeed. Any thread may read it."""
        return self._upper.trouble or self._lower.trouble

    @property
    def damaged(self) -> list[str]:
        """A sentence for each damaged file of either store."""
        return [*self._upper.damaged, *self._lower.damaged]

    def append_scores(self, batch: pa.RecordBatch) -> int:
        """Commit scores to the upper store; return how many were new.

        Raises:
            UserError: as for `SampleStore.append_scores`; also if the lower store has another scorer of that name.
        """
        self._lower.refuse_another_scorer(batch)
        return self._upper.append_scores(batch)

    def refuse_another_scorer(self, batch: pa.RecordBatch) -> None:
        """Make sure that neither store has values of another scorer under the name of one of these."""
        self._lower.refuse_another_scorer(batch)
        self._upper.refuse_another_scorer(batch)

    def index(self) -> pa.Table:
        """Return the index of the lower store's groups, then of the upper's."""
        return pa.concat_tables([self._below, self._upper.index()])

    def unscored(self, scorer: str) -> list[str]:
        """Return the ids of the groups for which neither store has that scorer's values."""
        below = self._below["group_id"]
        lacking = pa.array(self._lower.unscored(scorer), pa.string())
        names = below.filter(pc.is_in(below, value_set=lacking)).to_pylist()
        own = self._upper.unscored(scorer)
        return list(compress(names, ~self._upper.has_scores(names, scorer))) + own

    def nulls(self, scorer: str) -> pa.Table:
        """Return the groups for which the store that counts has null values; see `SampleStore.nulls`."""
        lower = self._lower.nulls(scorer)
        lower = lower.filter(pc.is_in(lower["group_id"], value_set=self._below["group_id"].combine_chunks()))
        counts = pa.array(~self._upper.has_scores(lower["group_id"].to_pylist(), scorer))
        return pa.concat_tables([lower.filter(counts), self._upper.nulls(scorer)])

    def scorers(self) -> list[ScorerSummary]:
        """Return the scorers of both stores; one that both have is there twice."""
        return [*self._lower.scorers(), *self._upper.scorers()]

    def batches(
        self,
        *,
        round_: int | None = None,
        version: int | None = None,
        group_ids: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield GROUPS rows of the lower store, then of the upper."""
        wanted = self._below["group_id"].to_pylist() if group_ids is None else group_ids
        yield from self._lower.batches(round_=round_, version=version, group_ids=wanted, columns=columns)
        yield from self._upper.batches(round_=round_, version=version, group_ids=group_ids, columns=columns)

    def has_groups(self, group_ids: Sequence[str]) -> Found:
        """Return for each group whether either store has it."""
        return self._upper.has_groups(group_ids) | self._lower.has_groups(group_ids)

    def has_scores(self, group_ids: Sequence[str], scorer: str) -> Found:
        """Return for each group whether either store has the scorer's values."""
        return self._upper.has_scores(group_ids, scorer) | self._lower.has_scores(group_ids, scorer)

    def has_group(self, group_id: str) -> bool:
        """Return whether either store has a group."""
        return self._upper.has_group(group_id) or self._lower.has_group(group_id)

    def has_score(self, group_id: str, scorer: str) -> bool:
        """Return whether either store has a scorer's values for a group."""
        return self._upper.has_score(group_id, scorer) or self._lower.has_score(group_id, scorer)

    def groups(self, group_ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the GROUPS rows of the given ids, in the given order."""
        upper, lower = (partial(store.groups, columns=columns) for store in (self._upper, self._lower))
        return _interleaved(group_ids, self._upper.has_groups(group_ids), upper, lower)

    def scores(self, group_ids: Sequence[str], scorer: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the SCORES rows of one scorer for the given groups, in the given order."""
        upper, lower = (partial(store.scores, scorer=scorer, columns=columns) for store in (self._upper, self._lower))
        return _interleaved(group_ids, self._upper.has_scores(group_ids, scorer), upper, lower)

    def score_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the lower store's SCORES rows of all rounds that the upper lacks, then the upper's."""
        for batch in self._lower.score_batches():
            doubled = np.zeros(batch.num_rows, dtype=bool)
            for scorer in batch["scorer"].unique().to_pylist():
                of_it = pc.equal(batch["scorer"], scorer).to_numpy(zero_copy_only=False)
                doubled |= of_it & self._upper.has_scores(batch["group_id"].to_pylist(), scorer)
            yield batch.filter(pa.array(~doubled)) if doubled.any() else batch
        yield from self._upper.score_batches()

    def counts(self) -> dict[str, int]:
        """Return the number of groups and scores of both stores (scores of all rounds) and of steps of the upper."""
        upper = self._upper.counts()
        scores = self._lower.counts()["scores"] + upper["scores"]
        return {"groups": self._below.num_rows + upper["groups"], "scores": scores, "steps": upper["steps"]}


Store: TypeAlias = SampleStore | OverlaidStore
"""A store that a run reads from and writes to."""

_Read: TypeAlias = Callable[[Sequence[str]], pa.Table]


def _interleaved(names: Sequence[str], in_upper: Found, upper: _Read, lower: _Read) -> pa.Table:
    """Return rows from two stores in the order of the names."""
    if in_upper.all():
        return upper(names)
    if not in_upper.any():
        return lower(names)
    above, below = np.flatnonzero(in_upper), np.flatnonzero(~in_upper)
    rows = pa.concat_tables([upper([names[index] for index in above]), lower([names[index] for index in below])])
    return rows.take(pa.array(np.argsort(np.concatenate([above, below]))))
