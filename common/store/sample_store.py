"""The sample store: append-only Arrow parts that are the source of truth of a run; docs/store.md has their layout."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.schemas import KINDS, batch_from_rows
from brain_align.common.store.files.backends import unusable
from brain_align.common.store.opened_store import IN_ORDER_OF_DEPENDENCE, OpenedStore
from brain_align.common.store.scorer_digests import ScorerDigests, scorers_of
from brain_align.common.store.table.new_rows import new_rows
from brain_align.common.store.table.summary_rows import SUMMARY_SCHEMAS, ScorerSummary, scorer_summaries
from brain_align.common.store.training_lock import TrainingLock, hold_training_lock

Found = npt.NDArray[np.bool_]


class SampleStore:
    """Groups, scores and steps of one run, durable as soon as an append returns.

    Rows have keys (groups: id; scores: group and scorer; steps: number). Appending a row whose key the store has
    already is harmless: the first row stays, and the second is dropped before it is written. Only null values can still
    be filled: scores that have a value where the store has null add it.

    Any number of processes may read and write at the same time. An opening sees the rows that existed when it was
    opened, those that it appended, and those that `refresh` has added; scores are refreshed before the first append of
    a scorer's values. The checksum of a part is verified before any of its rows is returned, once per opening. The
    summary rows of `index` come from index files, which have checksums of their own.

    Opening a store for writing sets damaged parts aside and reports them; only their own rows are lost. A read-only
    opening changes nothing. Methods that return rows raise DamagedPartError if a part with any of them is damaged.
    """

    def __init__(self, uri: str | Path, run_id: str | None, *, read_only: bool = False) -> None:
        """Open a store, or create one.

        Args:
            uri: a directory, or a URI of a file system that pyarrow knows (s3://bucket/path).
            run_id: the run that the store must belong to; None accepts any, and then the store must exist.
            read_only: change nothing.

        Raises:
            UserError: the store belongs to another run, has another version or cannot be read; or it does not exist,
                and is read-only or no run is given.
        """
        self._opening = OpenedStore(uri, run_id, read_only=read_only)
        self._kinds = self._opening.kinds
        self.root = self._opening.backend.uri
        self.run_id = self._opening.run_id
        self._lock: TrainingLock | None = None
        self._digests = ScorerDigests(self.root, self.scorers)
        self._appended: set[str] = set()  # names of scorers whose values this opening has appended

    @property
    def trouble(self) -> str | None:
        """The error of a request that is being repeated; None while requests succeed. Any thread may read it."""
        return self._opening.backend.trouble

    @property
    def damaged(self) -> list[str]:
        """A sentence for each part that was found damaged, with its present path."""
        return self._opening.damaged

    # -- writing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def training(self, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold the training lock, which `append_step` needs; others may append groups and scores meanwhile.

        `waiting`: see `hold_training_lock`.

        Raises:
            TryAgainError: another process holds it.
            UserError: the store cannot be written.
        """
        with hold_training_lock(self._opening.backend, waiting) as self._lock:
            try:
                self.refresh()  # its previous holder may have recorded steps
                yield
            finally:
                self._lock = None

    def append_groups(self, batch: pa.RecordBatch) -> int:
        """Commit groups; return how many were new.

        Raises:
            UserError: the disk is full, read-only or gone; no row of the batch was committed.
            ValueError: the batch does not have the columns of GROUPS.
        """
        return self._append("groups", batch)

    def append_scores(self, batch: pa.RecordBatch) -> int:
        """Commit scores; return how many were new. Raise as `append_groups` and `refuse_another_scorer` do."""
        scorers = scorers_of(batch)
        if any(name not in self._appended for name, _ in scorers):  # others may have appended some since the last look
            self._refresh("scores")
        self.refuse_another_scorer(batch)
        appended = self._append("scores", batch)
        for name, digest in scorers:
            self._digests.of(name).add(digest)
            self._appended.add(name)
        return appended

    def refuse_another_scorer(self, batch: pa.RecordBatch) -> None:
        """Make sure that two different scorers do not share a name.

        Raises:
            UserError: the store has values of another scorer under the name of one in these SCORES rows.
        """
        self._digests.refuse_another(batch)

    def append_step(self, row: Mapping[str, Any]) -> int:
        """Commit one STEPS row; return 1, or 0 if the step was recorded before (a replay after a crash).

        Raises:
            UserError: as for `append_groups`; or another process has taken over the training lock.
            ValueError: outside of `training`.
        """
        if self._lock is None:
            raise ValueError(f"steps of {self.root} can only be recorded within `training`")
        self._lock.check()
        metrics = list(row["metrics"].items())
        return self._append("steps", batch_from_rows(KINDS["steps"], [{**row, "metrics": metrics}]))

    # -- reading: keys and counts ------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Make visible what other writers have committed since the opening or the last refresh.

        Raises:
            UserError: the store cannot be read.
        """
        for kind in IN_ORDER_OF_DEPENDENCE:
            self._refresh(kind)

    def counts(self) -> dict[str, int]:
        """Return the number of committed groups, scores and steps."""
        return {kind: len(self._kinds[kind].rows) for kind in KINDS}

    @property
    def group_ids(self) -> Iterable[str]:
        """The ids of all committed groups, in the order of commitment."""
        return self._kinds["groups"].rows.listed()["group_id"].to_pylist()

    def has_groups(self, group_ids: Sequence[str]) -> Found:
        """Return for each of these groups whether it is committed; read no part."""
        return self._kinds["groups"].find(group_ids) >= 0

    def has_scores(self, group_ids: Sequence[str], scorer: str) -> Found:
        """Return for each of these groups whether a scorer's values for it are committed; read no part."""
        return self._kinds["scores"].find(group_ids, [scorer] * len(group_ids)) >= 0

    def has_group(self, group_id: str) -> bool:
        """Return whether a group is committed."""
        return bool(self.has_groups([group_id])[0])

    def has_score(self, group_id: str, scorer: str) -> bool:
        """Return whether a scorer's values for a group are committed."""
        return bool(self.has_scores([group_id], scorer)[0])

    def part_files(self, kind: str) -> list[str]:
        """Return the parts that hold the rows of a kind, in the order of commitment, for tools that open Arrow files.

        This refreshes the opening first, so the files exist and hold exactly the rows that it sees. Parts that a
        compaction has replaced but not deleted yet are not among them.
        """
        self.refresh()
        return [f"{self.root}/{kind}/{file}" for file in self._kinds[kind].part_map.read_files()]

    def index(self) -> pa.Table:
        """Return one summary row per group (`SUMMARY_SCHEMAS`), in the order of commitment; read no part."""
        return self._kinds["groups"].rows.listed().select(SUMMARY_SCHEMAS["groups"].names)

    def unscored(self, scorer: str) -> list[str]:
        """Return the ids of the groups that lack a scorer's values, in the order of commitment; read no part."""
        rows = self._kinds["scores"].rows.listed()
        wanted = pc.equal(rows["scorer"].cast(pa.string()), scorer)
        scored = rows["group_id"].filter(wanted).combine_chunks()
        groups = self._kinds["groups"].rows.listed()["group_id"]
        return groups.filter(pc.invert(pc.is_in(groups, value_set=scored))).to_pylist()

    def nulls(self, scorer: str) -> pa.Table:
        """Return `group_id`, `values` and `nulls` (how many outputs have one) of groups with nulls; read no part."""
        rows = self._kinds["scores"].rows.listed()
        wanted = pc.and_(pc.equal(rows["scorer"].cast(pa.string()), scorer), pc.greater(rows["nulls"], 0))
        return rows.filter(wanted).select(["group_id", "values", "nulls"])

    own_nulls = nulls  # of this store alone, also where it lies over another

    def scorers(self) -> list[ScorerSummary]:
        """Return the scorers whose values are in the store, by name and digest; read no part."""
        return scorer_summaries(self._kinds["scores"].rows.listed())

    # -- reading: the rows -------------------------------------------------------------------------------------------

    def batches(
        self,
        *,
        round_: int | None = None,
        version: int | None = None,
        group_ids: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the GROUPS rows of a round, a proposal version or given ids, of which unknown ones are ignored.

        There is one batch per commit that has any of the wanted rows, in the order of commitment: the same for every
        reader of the same commits, compacted or not.
        """
        catalogue = self._kinds["groups"]
        rows = catalogue.rows.listed()
        for name, value in (("round", round_), ("proposal_version", version)):
            if value is not None:
                rows = rows.filter(pc.equal(rows[name], value))
        if group_ids is not None:
            rows = rows.filter(pc.is_in(rows["group_id"], value_set=pa.array(group_ids, type=pa.string())))
        for batch in catalogue.batches(rows):
            yield batch if columns is None else batch.select(list(columns))

    def score_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all SCORES rows in the order of commitment except those of damaged parts, which `damaged` names."""
        return self._kinds["scores"].batches(skip_damaged=True)

    def step_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all STEPS rows in the order of commitment except those of damaged parts, which `damaged` names."""
        return self._kinds["steps"].batches(skip_damaged=True)

    def groups(self, group_ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the GROUPS rows of the given ids, in the given order; fewer columns are read faster.

        Raises:
            KeyError: a group is not in the store.
        """
        return self._take("groups", [group_ids], columns)

    def scores(self, group_ids: Sequence[str], scorer: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the SCORES rows of one scorer for the given groups, in the given order; see `groups`.

        Raises:
            KeyError: the scorer's values for a group are not in the store.
        """
        return self._take("scores", [group_ids, [scorer] * len(group_ids)], columns)

    def steps(self) -> list[dict[str, Any]]:
        """Return all STEPS rows as dicts, by step."""
        rows = self._kinds["steps"].table().to_pylist()
        return [{**row, "metrics": dict(row["metrics"])} for row in sorted(rows, key=lambda row: row["step"])]

    def step_groups(self, step: int) -> list[str] | None:
        """Return the groups that trained a step, or None if that step is not recorded."""
        catalogue = self._kinds["steps"]
        found = catalogue.find([step])
        return None if found[0] < 0 else catalogue.take(found, ["group_ids"])["group_ids"][0].as_py()

    def recorded_after(self, step: int) -> dict[int, list[str]]:
        """Return the groups that trained each recorded step after this one, by step."""
        catalogue = self._kinds["steps"]
        numbers = catalogue.rows.listed()["step"].combine_chunks()
        found = catalogue.find(numbers.filter(pc.greater(numbers, step)))
        rows = catalogue.take(found, ["step", "group_ids"])
        return dict(zip(rows["step"].to_pylist(), rows["group_ids"].to_pylist(), strict=True))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _refresh(self, kind: str) -> None:
        try:
            self._kinds[kind].refresh()
        except OSError as error:
            raise unusable(self._opening.backend, "read", error) from error
        if kind == "scores":
            self._digests.forget()

    def _append(self, kind: str, batch: pa.RecordBatch) -> int:
        new = new_rows(self._kinds[kind], batch)
        if new.batch.num_rows:
            self._opening.append(kind, new.batch, new.replaced)
        return new.batch.num_rows

    def _take(self, kind: str, keys: Sequence[Sequence[str]], columns: Sequence[str] | None) -> pa.Table:
        catalogue = self._kinds[kind]
        numbers = catalogue.find(*keys)
        if (missing := np.flatnonzero(numbers < 0)).size:
            raise KeyError(tuple(column[missing[0]] for column in keys))
        return catalogue.take(numbers, columns)
