"""The sample store: append-only Arrow parts that are the source of truth of a run (docs/store.md).

    <store>/store.json            the run that it belongs to, schema version
    <store>/groups/*.arrow        GROUPS: what was sampled
    <store>/scores/*.arrow        SCORES: what the scorers said of it
    <store>/steps/*.arrow         STEPS:  which groups trained which step
    <store>/index/*.arrow         what makes opening quick; made again from the parts when it is missing
    <store>/damaged/              what was set aside because it could not be read

Rows are keyed (groups by id; scores by group and scorer; steps by number). Appending a row whose key is there already
is harmless: the first one stays, the second is dropped before it is written.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.schemas import KINDS, PRIOR, PROPOSAL, batch_from_rows
from brain_align.common.store.opened_store import IN_ORDER_OF_DEPENDENCE, OpenedStore
from brain_align.common.store.table.keys import Rows
from brain_align.common.store.table.summary_rows import KEYS, SUMMARY_SCHEMAS, ScorerSummary, scorer_summaries
from brain_align.common.store.training_lock import TrainingLock, hold_training_lock

Found = npt.NDArray[np.bool_]


class SampleStore:
    """Groups, scores and steps of one run, durable as soon as an append returns.

    Any number of processes may read and write at once. What an opening sees is what was there when it was opened, what
    it has appended itself, and what `refresh` has brought; scores are refreshed before the first that it appends of a
    scorer. No row is given out before its part's checksum has been
    verified, once in an opening; the light rows of `index` come from index files with a checksum of their own.

    Opening a store for writing sets damaged parts aside with a message; it costs nothing but their own rows. A reader
    leaves all as it is.
    """

    def __init__(self, uri: str | Path, run_id: str | None, *, read_only: bool = False) -> None:
        """Open a store, or begin one.

        Args:
            uri: a directory, or a URI of a file system that pyarrow knows (s3://bucket/path).
            run_id: the run that the store must belong to; None: whichever it belongs to, and it must be there.
            read_only: change nothing.

        Raises:
            UserError: no store there (readers, and where no run is named), a store of another run or of a newer
                version, or an unreadable one.
        """
        self._opening = OpenedStore(uri, run_id, read_only=read_only)
        self._kinds = self._opening.kinds
        self.root = self._opening.backend.uri
        self.run_id = self._opening.run_id
        self._lock: TrainingLock | None = None
        self._digests: dict[str, set[str]] | None = None  # of the scorers by name, once somebody has asked
        self._appended: set[str] = set()  # scorers whose values this opening has appended

    @property
    def damaged(self) -> list[str]:
        """A sentence for each part that was found damaged, and where it is now."""
        return self._opening.damaged

    # -- writing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def training(self) -> Iterator[None]:
        """Be the one that records steps; others may append groups and scores meanwhile.

        Raises:
            UserError: another process is, or the store cannot be written.
        """
        with hold_training_lock(self._opening.backend) as self._lock:
            try:
                self.refresh()  # what the one before has recorded
                yield
            finally:
                self._lock = None

    def append_groups(self, batch: pa.RecordBatch) -> int:
        """Commit groups; returns how many were new.

        Raises:
            UserError: the disk is full, read-only or away; nothing of the batch was acknowledged.
            ValueError: these are not the columns of GROUPS.
        """
        return self._append("groups", batch)

    def append_scores(self, batch: pa.RecordBatch) -> int:
        """Commit scores; returns how many were new.

        Raises:
            UserError: as for `append_groups` and `refuse_another_scorer`.
        """
        scorers = _scorers_of(batch)
        if not self._appended.issuperset(name for name, _ in scorers):  # others may have been at it since we looked
            self._refresh("scores")
        self.refuse_another_scorer(batch)
        appended = self._append("scores", batch)
        for name, digest in scorers:
            self._digests_of(name).add(digest)
            self._appended.add(name)
        return appended

    def refuse_another_scorer(self, batch: pa.RecordBatch) -> None:
        """Make sure that values of two scorers do not stand under one name.

        Raises:
            UserError: the store has other values under the name of a scorer of these SCORES rows.
        """
        for name, digest in _scorers_of(batch):
            known = self._digests_of(name)
            if known and digest not in known:
                # A scorer's name belongs to its run, and those of log-probabilities are always the same.
                other = (
                    ""
                    if name in (PRIOR, PROPOSAL)
                    else ", or score the groups under another name (brain store rescore --scorer NEW scorers.NEW.…)"
                )
                raise UserError(
                    f"The sample store {self.root} has values of another scorer under the name {name!r} (digest "
                    f"{', '.join(sorted(known))}; this one's is {digest}), and a group has one value a name; bring "
                    f"back the files and settings that those were made with, or start another run{other}."
                )

    def append_step(self, row: Mapping[str, Any]) -> int:
        """Commit one STEPS row; returns 1, or 0 where the step was recorded before (a replay after a crash).

        Raises:
            UserError: as for `append_groups`; or this process was silent for so long that another trains here now.
            ValueError: outside of `training`.
        """
        if self._lock is None:
            raise ValueError(f"a step of {self.root} is recorded within `training` only")
        self._lock.check()
        metrics = list(row["metrics"].items())
        return self._append("steps", batch_from_rows(KINDS["steps"], [{**row, "metrics": metrics}]))

    # -- reading: what is there --------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take in what other writers have committed since.

        Raises:
            UserError: the place cannot be read.
        """
        for kind in IN_ORDER_OF_DEPENDENCE:
            self._refresh(kind)

    def counts(self) -> dict[str, int]:
        """How many groups, scores and steps are committed."""
        return {kind: len(self._kinds[kind].rows) for kind in KINDS}

    @property
    def group_ids(self) -> Iterable[str]:
        """Ids of all committed groups, in the order of commitment."""
        return self._kinds["groups"].rows.listed()["group_id"].to_pylist()

    def has_groups(self, group_ids: Sequence[str]) -> Found:
        """[wanted] whether each of these groups is committed; reads no part."""
        return self._kinds["groups"].find(group_ids) >= 0

    def has_scores(self, group_ids: Sequence[str], scorer: str) -> Found:
        """[wanted] whether a scorer's values for each of these groups are committed; reads no part."""
        return self._kinds["scores"].find(group_ids, [scorer] * len(group_ids)) >= 0

    def has_group(self, group_id: str) -> bool:
        """Whether a group is committed."""
        return bool(self.has_groups([group_id])[0])

    def has_score(self, group_id: str, scorer: str) -> bool:
        """Whether a scorer's values for a group are committed."""
        return bool(self.has_scores([group_id], scorer)[0])

    def part_files(self, kind: str) -> list[str]:
        """The parts that hold the rows of a kind, in the order of commitment: for tools that open Arrow files.

        It refreshes first, so that the files are there, and hold the rows that this opening sees and no others. Parts
        that compaction has replaced, and that are still there for a while, are not among them.

        Args:
            kind: groups, scores or steps.
        """
        self.refresh()
        return [f"{self.root}/{kind}/{file}" for file in self._kinds[kind].part_map.read_files()]

    def index(self) -> pa.Table:
        """One light row a group, in the order of commitment; reads no part.

        Columns: group_id, prompt_id, round, proposal_version, outputs (how many), tokens (of the prompt and all
        outputs), started_at, finished_at (seconds since the epoch).
        """
        return self._kinds["groups"].rows.listed().select(SUMMARY_SCHEMAS["groups"].names)

    def unscored(self, scorer: str) -> list[str]:
        """Ids of the groups without a scorer's values, in the order of commitment; reads no part."""
        rows = self._kinds["scores"].rows.listed()
        wanted = pc.equal(rows["scorer"].cast(pa.string()), scorer)
        scored = rows["group_id"].filter(wanted).combine_chunks()
        groups = self._kinds["groups"].rows.listed()["group_id"]
        return groups.filter(pc.invert(pc.is_in(groups, value_set=scored))).to_pylist()

    def scorers(self) -> list[ScorerSummary]:
        """The scorers whose values are in the store, by name and digest; reads no part."""
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
        """GROUPS rows in the order of commitment, one batch for each commit that has any that are wanted.

        The order and the batches are the same for every reader of the same commits, compacted or not.

        Args:
            round_: only groups of this round.
            version: only groups of this proposal version.
            group_ids: only these groups; unknown ones are left out.
            columns: only these columns.

        Raises:
            DamagedPartError: a part is damaged.
        """
        catalogue = self._kinds["groups"]
        light = catalogue.rows.listed()
        if round_ is not None:
            light = light.filter(pc.equal(light["round"], round_))
        if version is not None:
            light = light.filter(pc.equal(light["proposal_version"], version))
        if group_ids is not None:
            light = light.filter(pc.is_in(light["group_id"], value_set=pa.array(group_ids, type=pa.string())))
        for commit, rows in catalogue.commits(light):
            batch = catalogue.read(commit)
            batch = batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))
            yield batch if columns is None else batch.select(list(columns))

    def score_batches(self) -> Iterator[pa.RecordBatch]:
        """All SCORES rows in the order of commitment, without those of damaged parts, which `damaged` names then."""
        return self._readable_batches("scores")

    def step_batches(self) -> Iterator[pa.RecordBatch]:
        """All STEPS rows in the order of commitment, without those of damaged parts, which `damaged` names then."""
        return self._readable_batches("steps")

    def groups(self, group_ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """The GROUPS rows of the given ids, in the given order.

        Args:
            group_ids: one row each.
            columns: only these columns, which costs less.

        Raises:
            KeyError: a group is not in the store.
            DamagedPartError: its part is damaged.
        """
        return self._take("groups", [group_ids], columns)

    def scores(self, group_ids: Sequence[str], scorer: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The SCORES rows of one scorer for the given groups, in the given order.

        Args:
            group_ids: one row each.
            scorer: its name.
            columns: only these columns, which costs less.

        Raises:
            KeyError: the scorer's values for a group are not in the store.
            DamagedPartError: their part is damaged.
        """
        return self._take("scores", [group_ids, [scorer] * len(group_ids)], columns)

    def steps(self) -> list[dict[str, Any]]:
        """All STEPS rows, by step.

        Raises:
            DamagedPartError: a part is damaged.
        """
        catalogue = self._kinds["steps"]
        tables = [catalogue.read(commit).take(pa.array(rows)) for commit, rows in catalogue.commits()]
        rows = pa.Table.from_batches(tables, schema=KINDS["steps"]).to_pylist()
        return [{**row, "metrics": dict(row["metrics"])} for row in sorted(rows, key=lambda row: row["step"])]

    def step_groups(self, step: int) -> list[str] | None:
        """The groups that trained a step, or None if that step is not recorded.

        Raises:
            DamagedPartError: its part is damaged.
        """
        catalogue = self._kinds["steps"]
        found = catalogue.find([step])
        return None if found[0] < 0 else catalogue.take(found, ["group_ids"])["group_ids"][0].as_py()

    def recorded_after(self, step: int) -> dict[int, list[str]]:
        """The groups that trained each recorded step after this one, by step.

        Raises:
            DamagedPartError: a part is damaged.
        """
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
            raise UserError(f"The sample store {self.root} cannot be read: {error.strerror or error}.") from error
        if kind == "scores":
            self._digests = None

    def _digests_of(self, scorer: str) -> set[str]:
        if self._digests is None:
            self._digests = {}
            for scorer_summary in self.scorers():
                self._digests.setdefault(scorer_summary.name, set()).add(scorer_summary.digest)
        return self._digests.setdefault(scorer, set())

    def _append(self, kind: str, batch: pa.RecordBatch) -> int:
        columns = [batch[name] for name in KEYS[kind]]
        keys = list(zip(*(column.to_pylist() for column in columns), strict=True))
        fresh = _first_of_each(keys, self._kinds[kind].find(*columns))
        if fresh:
            self._opening.append(kind, batch if len(fresh) == batch.num_rows else batch.take(pa.array(fresh)))
        return len(fresh)

    def _readable_batches(self, kind: str) -> Iterator[pa.RecordBatch]:
        catalogue = self._kinds[kind]
        for commit, rows in catalogue.commits():
            try:
                batch = catalogue.read(commit)
            except DamagedPartError:
                continue
            yield batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))

    def _take(self, kind: str, keys: Sequence[Sequence[str]], columns: Sequence[str] | None) -> pa.Table:
        catalogue = self._kinds[kind]
        numbers: Rows = catalogue.find(*keys)
        if (missing := np.flatnonzero(numbers < 0)).size:
            raise KeyError(tuple(column[missing[0]] for column in keys))
        return catalogue.take(numbers, columns)


def _scorers_of(batch: pa.RecordBatch) -> set[tuple[str, str]]:
    """(name, digest) of the scorers of some SCORES rows."""
    return set(zip(batch["scorer"].to_pylist(), batch["scorer_digest"].to_pylist(), strict=True))


def _first_of_each(keys: list[Any], found: Rows) -> list[int]:
    """Which rows have keys that are neither in the store nor earlier in the batch."""
    if (found < 0).all() and len(set(keys)) == len(keys):
        return list(range(len(keys)))
    seen: set[Any] = set()
    fresh = []
    for row, (key, number) in enumerate(zip(keys, found, strict=True)):
        if number < 0 and key not in seen:
            fresh.append(row)
        seen.add(key)
    return fresh
