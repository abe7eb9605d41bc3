"""List what a store holds.

Shows groups by round and proposal version, how many of them are scored and trained, statistics of every scorer, sizes
on disk, and what is damaged.

Examples:
  brain store ls runs/demo
  brain store ls runs/demo/evaluation --json
"""

import argparse
import json

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.common.statistics import Moments
from brain_align.deploy.commands.store.parts.overview import Cell, Overview, Scored, overview
from brain_align.deploy.commands.store.parts.terminal import add_store, opened, terminal

GROUP = "Inspect"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(options: argparse.Namespace) -> None:
    """List the contents."""
    found = overview(opened(options.place))
    if options.json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        show_overview(found, terminal())


def show_overview(found: Overview, console: Console) -> None:
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
