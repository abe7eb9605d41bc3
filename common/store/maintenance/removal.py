"""Removal of old groups (`brain store gc`), the only operation that deletes rows of a store.

Whole commits are removed: the groups of one append, which may come from several sample requests. A commit stays as long
as any of its groups does, so a few old groups may outlive others of their version. Groups that no step has trained, and
those of the newest trained round and of later rounds, stay. The ids of removed groups are recorded first, in
`removed/`, so that a score or a step that refers to them does not count as damaged.
"""

import re
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.store.files.backends import StorageBackend
from brain_align.common.store.format.names import CHECKSUM, checksum
from brain_align.common.store.format.part_files import decode_table, encode_table
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.table.compaction import rewrite_without

_DIRECTORY = "removed"
_LIST = re.compile(rf"groups-{CHECKSUM}\.arrow")
_IDS = pa.schema([pa.field("group_id", pa.string(), nullable=False)])


@dataclass(frozen=True)
class Criterion:
    """The groups to remove; if both bounds are given, both must hold."""

    below_version: int | None = None  # only groups of earlier proposal versions
    older_than: float | None = None  # only groups that were finished more than this many seconds ago
    untrained: bool = False  # also groups that no step has trained


@dataclass(frozen=True)
class Removal:
    """The commits of each kind, and the groups, that a removal takes."""

    commits: dict[str, list[str]]
    group_ids: list[str]
    kept_untrained: int  # old groups that stay because no step has trained them or their round is not over


def plan_removal(store: OpenedStore, criterion: Criterion) -> Removal:
    """Return the commits that a removal takes.

    Raises:
        DamagedPartError: the record of the steps is damaged.
    """
    groups = store.kinds["groups"]
    summaries = groups.rows.listed()
    old = _old(summaries, criterion)
    needed = _needed(store, summaries, untrained_too=not criterion.untrained)
    summaries = summaries.append_column("removed", pc.and_(old, pc.invert(needed)))
    commits = _wholly_removed(summaries)
    group_ids = summaries["group_id"].filter(pc.is_in(summaries["commit"], value_set=pa.array(commits)))
    scores = store.kinds["scores"].rows.listed()
    of_them = pc.is_in(scores["group_id"], value_set=group_ids.combine_chunks())
    numbers = {"groups": commits, "scores": _wholly_removed(scores.append_column("removed", of_them))}
    names = {kind: [store.kinds[kind].rows.commits[number] for number in found] for kind, found in numbers.items()}
    kept = pc.sum(pc.and_(old, needed)).as_py() or 0
    return Removal(names, group_ids.to_pylist(), kept)


def remove(store: OpenedStore, removal: Removal) -> int:
    """Carry out a removal; return how many files it deleted. An interrupted removal is finished by repeating it."""
    if not removal.group_ids:
        return 0
    batch = pa.RecordBatch.from_arrays([pa.array(removal.group_ids)], schema=_IDS)
    content = encode_table(batch, {b"brain.removed_at": str(time.time()), b"brain.run_id": store.run_id})
    store.backend.put(_DIRECTORY, f"groups-{checksum(content)}.arrow", content)
    deleted = 0
    for kind in ("scores", "groups"):
        catalogue = store.kinds[kind]
        deleted += rewrite_without(store.backend, catalogue, store.author, set(removal.commits[kind]))
        catalogue.refresh()
        catalogue.rebuild_index()
    return deleted


def removed_group_ids(backend: StorageBackend) -> tuple[set[str], list[str]]:
    """Return the groups that were removed on purpose, and a sentence for each damaged or foreign list of them."""
    removed: set[str] = set()
    problems = []
    for entry in sorted(backend.list(_DIRECTORY), key=lambda entry: entry.name):
        if not _LIST.fullmatch(entry.name):
            problems.append(
                f"{backend.uri}/{_DIRECTORY}/{entry.name} is not a file of a sample store; move it elsewhere."
            )
            continue
        content = backend.read_checked(f"{_DIRECTORY}/{entry.name}")
        try:
            if content is None:
                raise ValueError("its bytes do not match the checksum in its name")
            listed = decode_table(content)
            if not listed.schema.equals(_IDS):
                raise ValueError("it does not list groups")
            removed.update(listed["group_id"].to_pylist())
        except ValueError as error:
            problems.append(
                f"{backend.uri}/{_DIRECTORY}/{entry.name} is damaged: {error}; restore it from a copy, or the groups "
                f"that it lists count as lost."
            )
    return removed, problems


def _old(summaries: pa.Table, criterion: Criterion) -> pa.ChunkedArray:
    old = pc.is_valid(summaries["group_id"])
    if criterion.below_version is not None:
        old = pc.and_(old, pc.less(summaries["proposal_version"], criterion.below_version))
    if criterion.older_than is not None:
        old = pc.and_(old, pc.less(summaries["finished_at"], time.time() - criterion.older_than))
    return old


def _needed(store: OpenedStore, summaries: pa.Table, *, untrained_too: bool) -> pa.ChunkedArray:
    """Return which groups the run may still ask for.

    An overlapped run samples round r+1 while r trains, and a round may be trained in several passes. So everything from
    the newest trained round on is needed.
    """
    steps = store.kinds["steps"].table()
    needed = pc.greater_equal(summaries["round"], pc.max(steps["round"]).as_py() or 0)
    if untrained_too:
        trained = pc.is_in(summaries["group_id"], value_set=pc.list_flatten(steps["group_ids"]).combine_chunks())
        needed = pc.or_(needed, pc.invert(trained))
    return needed


def _wholly_removed(summaries: pa.Table) -> "np.typing.NDArray[np.int32]":
    """Return the commits, by number, all of whose rows are to be removed."""
    commits, removed = summaries["commit"].to_numpy(), summaries["removed"].to_numpy()
    return np.setdiff1d(commits, commits[~removed])
