"""List what a store holds.

Shows groups by round and proposal version, how many of them are scored and trained, statistics of every scorer, sizes
on disk, and what is damaged.

Examples:
  brain store ls runs/demo
  brain store ls runs/demo/evaluation --json
"""

import argparse
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.filesize import decimal
from rich.table import Table

from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.common.statistics import Moments
from brain_align.common.store.files.backends import open_backend
from brain_align.common.store.opened_store import FOLDERS
from brain_align.common.store.overlay import Store
from brain_align.deploy.commands.store.parts.terminal import add_store, opened
from brain_align.deploy.commands.store.parts.writers import joined
from brain_align.deploy.console import PlainConsole, say, terminal
from brain_align.deploy.run.stored_source import Source

GROUP = "Inspect"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(options: argparse.Namespace) -> None:
    """List the contents."""
    found = overview(opened(options.place))
    if options.json:
        say(json.dumps(found.as_dict(), indent=1))
    else:
        show_overview(found, terminal())


_AT_ONCE = 1 << 18  # SCORES rows in memory at a time: each piece is looked up in the whole index

Numbers = npt.NDArray[np.int64]


@dataclass
class Scored:
    """A scorer's values of some groups."""

    groups: int = 0
    nulls: int = 0  # outputs without a value
    errors: int = 0  # groups with an error
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
        """Return it for JSON; figures that do not exist are null."""
        return {**vars(self), "values": _figures(self.values), "gold": _figures(self.gold)}


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
        """Return it for JSON."""
        return {**vars(self), "scored": {name: facts.as_dict() for name, facts in self.scored.items()}}


@dataclass(frozen=True)
class Overview:
    """A store's contents in figures."""

    uri: str
    run_id: str
    counts: dict[str, int]  # of groups, scores and steps
    sizes: dict[str, int]  # bytes by folder
    cells: list[Cell]
    scorers: dict[str, Scored]  # over all groups
    digests: dict[str, list[str]]  # more than one where a scorer changed under its name
    damaged: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
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
    """Count a store's contents, from the index, scores and steps; the groups' own columns are not read."""
    store = source.store
    index = store.index()
    digests: dict[str, list[str]] = {}
    for facts in store.scorers():
        digests.setdefault(facts.name, []).append(facts.digest)
    cells, cell_of = _cells(index, _trained(store, index), sorted(digests))
    _add_scores(store, index, cells, cell_of)
    scorers = {name: Scored() for name in sorted(digests)}
    for cell in cells:
        for name, scored in cell.scored.items():
            scorers[name].merge(scored)
    backend = open_backend(source.location.uri)
    listed = {folder: backend.list(folder) for folder in FOLDERS}
    sizes = {folder: sum(entry.size for entry in entries) for folder, entries in listed.items() if entries}
    return Overview(str(store.root), store.run_id, store.counts(), sizes, cells, scorers, digests, list(store.damaged))


def _cells(index: pa.Table, trained: npt.NDArray[np.bool_], scorers: list[str]) -> tuple[list[Cell], Numbers]:
    """Return the cells by round and version, without scores, and the number of each group's cell.  # [groups]."""
    rounds, versions = (index[name].to_numpy().astype(np.int64) for name in ("round", "proposal_version"))
    keys, cell_of = np.unique(rounds << 32 | versions, return_inverse=True)
    amounts = (np.ones_like(cell_of), index["outputs"].to_numpy(), index["tokens"].to_numpy(), trained)
    totals = [np.bincount(cell_of, of_group, len(keys)).astype(np.int64).tolist() for of_group in amounts]
    cells = [
        Cell(int(key >> 32), int(key & 0xFFFFFFFF), count, outputs, tokens, used, {name: Scored() for name in scorers})
        for key, count, outputs, tokens, used in zip(keys, *totals, strict=True)
    ]
    return cells, cell_of


def _trained(store: Store, index: pa.Table) -> npt.NDArray[np.bool_]:
    """Return true for each group of the index that a step has trained.  # [groups]."""
    names = [batch["group_ids"].flatten() for batch in store.step_batches()]
    trained = pa.chunked_array(names, pa.string())
    return pc.is_in(index["group_id"], value_set=trained).to_numpy()


def _add_scores(store: Store, index: pa.Table, cells: list[Cell], cell_of: Numbers) -> None:
    """Count the scores of all groups of the index, each in the cell of its group."""
    ids = index["group_id"].combine_chunks()
    for scores in joined(store.score_batches(), _AT_ONCE):
        scores = scores.combine_chunks()
        rows = pc.index_in(scores["group_id"], value_set=ids)
        known = rows.is_valid().to_numpy()
        of = cell_of[rows.filter(pa.array(known)).to_numpy()]
        table = scores.filter(pa.array(known))
        for name in pc.unique(table["scorer"]).to_pylist():
            of_it = pc.equal(table["scorer"], name).to_numpy()
            for number in np.unique(of[of_it]):
                cells[number].scored[name].add(table.filter(pa.array(of_it & (of == number))))


def _numbers(values: pa.ChunkedArray) -> np.ndarray:
    return values.drop_null().to_numpy()


def _figures(moments: Moments) -> dict[str, float] | None:
    if not moments.count:
        return None
    return {"mean": moments.mean, "std": moments.std, "min": moments.least, "max": moments.greatest}


def show_overview(found: Overview, console: PlainConsole) -> None:
    """Print an overview as tables."""
    counts = ", ".join(f"{count:,} {kind}" for kind, count in found.counts.items())
    sizes = ", ".join(f"{folder} {decimal(size)}" for folder, size in sorted(found.sizes.items()))
    console.print(f"{found.uri}\nrun {found.run_id}: {counts}\non disk: {sizes or 'nothing'}", soft_wrap=True)
    if found.cells:
        console.print(_rounds(found))
    if found.scorers:
        console.print(_scorers(found))
    for damage in found.damaged:
        console.print(f"damaged: {damage}", style="red", soft_wrap=True)


def _rounds(found: Overview) -> Table:
    rewards = [name for name in found.scorers if name not in (PRIOR, PROPOSAL)]
    table = Table("round", "version", "groups", "outputs", "tokens", box=None, header_style="dim")
    for name in found.scorers:
        table.add_column(f"scored by\n{name}")
    table.add_column("trained")
    for name in rewards:
        table.add_column(f"mean\n{name}")
    for column in table.columns:
        column.justify = "right"
    for cell in found.cells:
        scored = [_share(cell.scored[name].groups, cell) for name in found.scorers]
        means = [_mean(cell.scored[name].values) for name in rewards]
        amounts = [f"{amount:,}" for amount in (cell.groups, cell.outputs, cell.tokens)]
        table.add_row(str(cell.round), str(cell.version), *amounts, *scored, _share(cell.trained, cell), *means)
    return table


def _scorers(found: Overview) -> Table:
    table = Table("scorer", "digest", "groups", "nulls", "errors", box=None, header_style="dim")
    for name in ("mean", "std", "min", "max", "gold mean", "gold std"):
        table.add_column(name)
    for column in table.columns[2:]:
        column.justify = "right"
    for name, scored in found.scorers.items():
        digests = ", ".join(digest[:8] for digest in found.digests[name])
        amounts = [f"{amount:,}" for amount in (scored.groups, scored.nulls, scored.errors)]
        table.add_row(name, digests, *amounts, *_statistics(scored))
    return table


def _statistics(scored: Scored) -> list[str]:
    values, gold = scored.values, scored.gold
    ours = [values.mean, values.std, values.least, values.greatest] if values.count else [None] * 4
    golds = [gold.mean, gold.std] if gold.count else [None] * 2
    return ["–" if figure is None else f"{figure:.3f}" for figure in (*ours, *golds)]


def _share(count: int, cell: Cell) -> str:
    return "all" if count == cell.groups else f"{count:,}"


def _mean(values: Moments) -> str:
    return f"{values.mean:.3f}" if values.count else "–"
