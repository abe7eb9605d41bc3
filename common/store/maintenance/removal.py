"""Removing old groups: what `brain store gc` does. It is the only thing that deletes rows of a store.

Whole commits go: the groups of one append, which a live run makes of all that have finished meanwhile, from one lease
or several. A commit stays as long as any of its groups does, so a few old groups may outlive others of their version.
Groups that no step has trained, and those from the newest round on that was trained, stay. The ids of what goes are
written down first (`removed/`), so that a score or a step that refers to them is not taken for damaged.
"""

import itertools
import re
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.store.files.backends import StorageBackend
from brain_align.common.store.format.checksums import PATTERN, checksum, checksum_of
from brain_align.common.store.format.part_files import encode_table
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.table.catalogue import Catalogue
from brain_align.common.store.table.compaction import rewrite_without

_DIRECTORY = "removed"
_LIST = re.compile(rf"groups-{PATTERN}\.arrow")
_IDS = pa.schema([pa.field("group_id", pa.string(), nullable=False)])


@dataclass(frozen=True)
class Criterion:
    """What is old: both bounds hold where both are given.

    Attributes:
        below_version: groups of earlier proposal versions.
        older_than: seconds since the groups were finished; groups that a clock dated into the future stay.
        untrained: also groups that no step has trained.
    """

    below_version: int | None = None
    older_than: float | None = None
    untrained: bool = False


@dataclass(frozen=True)
class Removal:
    """What would go.

    Attributes:
        commits: of each kind.
        group_ids: of the groups among them.
        kept_untrained: how many groups are old, and stay, as no step has trained them or their round is not over.
    """

    commits: dict[str, list[str]]
    group_ids: list[str]
    kept_untrained: int


def plan_removal(store: OpenedStore, criterion: Criterion) -> Removal:
    """Which commits a removal takes.

    Raises:
        DamagedPartError: the record of the steps is damaged.
    """
    groups = store.kinds["groups"]
    light = groups.rows.listed()
    old = _old(light, criterion)
    needed = _needed(store, light, untrained_too=not criterion.untrained)
    light = light.append_column("going", pc.and_(old, pc.invert(needed)))
    commits = _wholly(groups, light)
    rows = light.filter(pc.is_in(light["commit"], value_set=_numbers(groups, commits)))
    ids = rows["group_id"].to_pylist()
    kept = pc.sum(pc.and_(old, needed)).as_py() or 0
    return Removal({"groups": commits, "scores": _scores_of(store, rows["group_id"])}, ids, kept)


def remove(store: OpenedStore, removal: Removal) -> int:
    """Carry a removal out; returns how many files it deleted. Interrupted, it is finished by doing it again."""
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
        catalogue.drop_index()
        catalogue.write_index(at_least=1)
    return deleted


def removed_group_ids(backend: StorageBackend) -> tuple[set[str], list[str]]:
    """The groups that were removed on purpose, and a sentence for each list of them that is damaged or foreign."""
    removed: set[str] = set()
    problems = []
    for entry in sorted(backend.list(_DIRECTORY), key=lambda entry: entry.name):
        if not _LIST.fullmatch(entry.name):
            problems.append(f"{backend.uri}/{_DIRECTORY}/{entry.name} is no file of a sample store; move it out of it.")
            continue
        content = backend.read_checked(f"{_DIRECTORY}/{entry.name}", checksum_of(entry.name))
        if content is None:
            problems.append(
                f"{backend.uri}/{_DIRECTORY}/{entry.name} is damaged: its bytes do not match the checksum in its name; "
                f"restore it from a copy, or what it lists is taken for lost."
            )
        else:
            removed.update(pa.ipc.open_file(content).read_all()["group_id"].to_pylist())
    return removed, problems


def _old(light: pa.Table, criterion: Criterion) -> pa.ChunkedArray:
    old = pc.is_valid(light["group_id"])
    if criterion.below_version is not None:
        old = pc.and_(old, pc.less(light["proposal_version"], criterion.below_version))
    if criterion.older_than is not None:
        old = pc.and_(old, pc.less(light["finished_at"], time.time() - criterion.older_than))
    return old


def _needed(store: OpenedStore, light: pa.Table, *, untrained_too: bool) -> pa.ChunkedArray:
    """Which groups the run may still ask for.

    An overlapped run samples round r+1 while r trains, and a round may be trained in several passes: so everything from
    the newest round on that a step has trained is needed.
    """
    steps = store.kinds["steps"]
    trained: set[str] = set()
    newest = 0
    for commit, rows in steps.commits():
        batch = steps.read(commit).take(pa.array(rows))
        trained.update(itertools.chain.from_iterable(batch["group_ids"].to_pylist()))
        newest = max(newest, pc.max(batch["round"]).as_py())
    needed = pc.greater_equal(light["round"], newest)
    if untrained_too:
        known = pc.is_in(light["group_id"], value_set=pa.array(sorted(trained), pa.string()))
        needed = pc.or_(needed, pc.invert(known))
    return needed


def _wholly(catalogue: Catalogue, light: pa.Table) -> list[str]:
    """The commits all of whose rows are going."""
    commits = light["commit"].to_numpy()
    staying = set(commits[~light["going"].to_numpy()].tolist())
    return [catalogue.commit_of(number) for number in np.unique(commits) if number not in staying]


def _scores_of(store: OpenedStore, group_ids: pa.ChunkedArray) -> list[str]:
    """The commits of scores that are of these groups alone."""
    scores = store.kinds["scores"]
    light = scores.rows.listed()
    return _wholly(
        scores, light.append_column("going", pc.is_in(light["group_id"], value_set=group_ids.combine_chunks()))
    )


def _numbers(catalogue: Catalogue, commits: list[str]) -> pa.Array:
    wanted = set(commits)
    return pa.array([n for n, commit in enumerate(catalogue.rows.commits) if commit in wanted], pa.int32())
