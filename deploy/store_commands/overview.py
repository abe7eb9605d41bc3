"""What a store holds, in figures: by round and version, and by scorer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from common.statistics import Moments
from deploy.run_store import StoredSamples
from deploy.source import Source
from deploy.store_commands.damage import readable

_TRAINED, _LACKS = "trained", "lacks "  # columns beside those of the index
_CHUNK = 4096  # groups whose scores are in memory at a time


@dataclass
class Scored:
    """What a scorer said about some groups.

    Attributes:
        groups: how many groups have a row of it.
        nulls: outputs without a value.
        errors: groups with an error.
        values: of the outputs.
        gold: of the gold outputs.
    """

    groups: int = 0
    nulls: int = 0
    errors: int = 0
    values: Moments = field(default_factory=Moments)
    gold: Moments = field(default_factory=Moments)

    def add(self, scores: pa.Table) -> None:
        """Count SCORES rows in."""
        values = pc.list_flatten(scores["values"])
        self.groups += scores.num_rows
        self.nulls += values.null_count
        self.errors += scores.num_rows - scores["error"].null_count
        self.values += Moments.of(_numbers(values))
        self.gold += Moments.of(_numbers(scores["gold_value"]))

    def merge(self, other: "Scored") -> None:
        """Count in what was counted elsewhere."""
        self.groups += other.groups
        self.nulls += other.nulls
        self.errors += other.errors
        self.values += other.values
        self.gold += other.gold

    def as_dict(self) -> dict[str, Any]:
        """For JSON; figures that do not exist are null."""
        return {
            "groups": self.groups,
            "nulls": self.nulls,
            "errors": self.errors,
            "values": _figures(self.values),
            "gold": _figures(self.gold),
        }


@dataclass(frozen=True)
class Cell:
    """The groups of one round from one proposal version."""

    round: int
    version: int
    groups: int
    outputs: int
    tokens: int
    trained: int
    scored: dict[str, Scored]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "round": self.round,
            "version": self.version,
            "groups": self.groups,
            "outputs": self.outputs,
            "tokens": self.tokens,
            "trained": self.trained,
            "scored": {name: facts.as_dict() for name, facts in self.scored.items()},
        }


@dataclass(frozen=True)
class Overview:
    """What a store holds.

    Attributes:
        uri, run_id: which store, of which run.
        counts: groups, scores and steps.
        sizes: bytes by folder of the store.
        cells: by round and version.
        scorers: by name, over all groups.
        digests: of each scorer; more than one where it changed under its name.
        damaged: what is named as damaged.
    """

    uri: str
    run_id: str
    counts: dict[str, int]
    sizes: dict[str, int]
    cells: list[Cell]
    scorers: dict[str, Scored]
    digests: dict[str, list[str]]
    damaged: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        scorers = {name: {"digests": self.digests[name], **facts.as_dict()} for name, facts in self.scorers.items()}
        return {
            "uri": self.uri,
            "run_id": self.run_id,
            "counts": self.counts,
            "bytes": self.sizes,
            "rounds": [cell.as_dict() for cell in self.cells],
            "scorers": scorers,
            "damaged": self.damaged,
        }


def overview(source: Source) -> Overview:
    """Look through a store; groups' own columns are not read, only the index, scores and steps."""
    store = source.store
    index = store.index()
    digests: dict[str, list[str]] = {}
    for facts in store.scorers():
        digests.setdefault(facts.name, []).append(facts.digest)
    scorers = {name: Scored() for name in sorted(digests)}
    marked = index.append_column(_TRAINED, _among(index, (name for row in store.steps() for name in row["group_ids"])))
    for name in scorers:
        marked = marked.append_column(_LACKS + name, _among(index, store.unscored(name)))
    cells = [_cell(store, *key, rows, list(scorers)) for key, rows in _by_round_and_version(marked)]
    for cell in cells:
        for name, scored in cell.scored.items():
            scorers[name].merge(scored)
    sizes = folder_sizes(source.location.uri)
    return Overview(str(store.root), store.run_id, store.counts(), sizes, cells, scorers, digests, list(store.damaged))


def folder_sizes(uri: str) -> dict[str, int]:
    """Bytes in each folder of a store, wherever it lies."""
    if "://" in uri:
        files, root = pafs.FileSystem.from_uri(uri)
    else:
        files, root = pafs.LocalFileSystem(), uri
    sizes: dict[str, int] = {}
    for entry in files.get_file_info(pafs.FileSelector(root, recursive=True)):
        folder, _, below = entry.path.removeprefix(root).lstrip("/").partition("/")
        if entry.type == pafs.FileType.File and below:
            sizes[folder] = sizes.get(folder, 0) + entry.size
    return sizes


def _by_round_and_version(index: pa.Table) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    """The groups of each round and version, these in ascending order, in the order of the index."""
    rounds, versions = (index[name].to_numpy() for name in ("round", "proposal_version"))
    order = np.lexsort((versions, rounds))
    keys = np.stack([rounds[order], versions[order]], axis=1)
    starts = np.flatnonzero(np.any(np.diff(keys, axis=0, prepend=-1) != 0, axis=1))
    for first, last in pairwise([*starts, len(order)]):
        yield (int(keys[first, 0]), int(keys[first, 1])), index.take(order[first:last])


def _cell(store: StoredSamples, round_: int, version: int, rows: pa.Table, scorers: list[str]) -> Cell:
    ids = rows["group_id"]
    scored = {}
    for name in scorers:
        scored[name] = Scored()
        has = ids.filter(pc.invert(rows[_LACKS + name]))
        for start in range(0, len(has), _CHUNK):
            for rows_of_it in readable(partial(store.scores, scorer=name), has.slice(start, _CHUNK).to_pylist()):
                scored[name].add(rows_of_it)
    return Cell(
        round_,
        version,
        groups=rows.num_rows,
        outputs=pc.sum(rows["outputs"]).as_py(),
        tokens=pc.sum(rows["tokens"]).as_py(),
        trained=pc.sum(rows[_TRAINED]).as_py(),
        scored=scored,
    )


def _among(index: pa.Table, names: Iterable[str]) -> pa.ChunkedArray:
    """Whether each group of the index has one of the names."""
    return pc.is_in(index["group_id"], value_set=pa.array(list(names), pa.string()))


def _numbers(values: pa.ChunkedArray) -> np.ndarray:
    return values.drop_null().to_numpy()


def _figures(moments: Moments) -> dict[str, float] | None:
    if not moments.count:
        return None
    return {"mean": moments.mean, "std": moments.std, "min": moments.least, "max": moments.greatest}
