"""Write samples as Parquet, JSON lines, preference pairs or a dataset.

Writes one row per output with all its scores, or preference pairs under the column names that TRL reads.

Examples:
  brain store export runs/demo --format parquet --output samples.parquet
  brain store export runs/demo --format pairs --pairing best-worst --output pairs.jsonl
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.progress import Progress

from brain_align.common.errors import UserError
from brain_align.common.store.flat_rows import FlatRows, readable
from brain_align.common.store.overlay import Store
from brain_align.deploy.commands.output import new_output, writing
from brain_align.deploy.commands.store.parts.pairs import PAIRINGS, Pairs
from brain_align.deploy.commands.store.parts.terminal import add_store, opened
from brain_align.deploy.commands.store.parts.writers import import_datasets, write_dataset, write_jsonl, write_parquet
from brain_align.deploy.console import say, terminal
from brain_align.deploy.run.stored_source import Ranking, ranking

Write = Callable[[Path, pa.Schema, Iterable[pa.RecordBatch]], int]

_CHUNK = 256  # groups in memory at a time
_WRITERS: dict[str, Write] = {"parquet": write_parquet, "jsonl": write_jsonl, "hf": write_dataset}

GROUP = "Use"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_store(parser)
    parser.add_argument("--format", required=True, choices=[*_WRITERS, "pairs"])
    parser.add_argument("--output", required=True, type=Path, metavar="PATH", help="pairs: .jsonl or .parquet")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument("--round", type=int, metavar="N", help="only the groups of this round")
    parser.add_argument("--version", type=int, metavar="N", help="only the groups of this proposal version")
    parser.add_argument(
        "--scorer", metavar="NAME", help="only groups that it has scored, with its values alone; pairs: what ranks"
    )
    parser.add_argument(
        "--pairing", choices=list(PAIRINGS), default="consecutive", help="which pairs (default: %(default)s, disjoint)"
    )


def run(options: argparse.Namespace) -> None:
    """Export the samples."""
    write = _writer(options.format, options.output)
    source = opened(options.place)
    store = source.store
    ranked_by = ranking(source, options.scorer) if options.format == "pairs" else None
    say(f"{_write(store, ranked_by, write, options)}: {options.output}")
    for damage in store.damaged:
        say(f"left out, as it is damaged: {damage}", stderr=True)


def _write(store: Store, ranked_by: Ranking | None, write: Write, options: argparse.Namespace) -> str:
    """Write the output, and return a summary of it."""
    rows: FlatRows | Pairs
    if ranked_by is None:
        wanted = [options.scorer] if options.scorer else []
        rows = FlatRows(store, wanted or sorted({facts.name for facts in store.scorers()}))
    else:
        wanted = ranked_by.scorers
        rows = Pairs(store, ranked_by, options.pairing)
    selected = _selected(store, options.round, options.version, wanted)
    groups = 0

    def converted(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        nonlocal groups
        for batch in batches:
            groups += batch.num_rows
            yield rows.rows(batch)

    with (
        Progress(console=terminal(stderr=True), transient=True) as progress,
        new_output(options.output, force=options.force) as target,
        writing(options.output),
    ):
        count = write(target, rows.schema, converted(_batches(store, selected, progress)))
    dropped = "".join(f", {number:,} {reason} left out" for reason, number in rows.dropped.items() if number)
    return f"{groups:,} groups, {count:,} {'pairs' if options.format == 'pairs' else 'rows'}{dropped}"


def _writer(form: str, output: Path) -> Write:
    if form == "hf":
        import_datasets()  # before anything is read
    if form != "pairs":
        return _WRITERS[form]
    suffix = output.suffix.removeprefix(".")
    if suffix not in ("jsonl", "parquet"):
        raise UserError(f"--output {output}: pairs are written as .jsonl or .parquet; end the name in one of them.")
    return _WRITERS[suffix]


def _selected(store: Store, round_: int | None, version: int | None, scorers: Sequence[str]) -> pa.ChunkedArray:
    """Return the ids of the groups that have values of all these scorers, in the order of commitment."""
    index = store.index()
    filters = {"round": round_, "proposal_version": version}
    for column, value in filters.items():
        if value is not None:
            index = index.filter(pc.equal(index[column], value))
    ids = index["group_id"]
    for scorer in scorers:
        ids = ids.filter(pc.invert(pc.is_in(ids, value_set=pa.array(store.unscored(scorer), pa.string()))))
    if not len(ids):
        asked = [f"{name} {value}" for name, value in filters.items() if value is not None]
        asked += [f"scorer {scorer}" for scorer in scorers]
        raise UserError(f"The store {store.root} has no groups{' of ' if asked else ''}{', '.join(asked)}.")
    return ids


def _batches(store: Store, groups: pa.ChunkedArray, progress: Progress) -> Iterator[pa.RecordBatch]:
    task = progress.add_task("exporting", total=len(groups))
    for start in range(0, len(groups), _CHUNK):
        piece = groups.slice(start, _CHUNK).to_pylist()
        for rows in readable(store.groups, piece):
            yield from rows.combine_chunks().to_batches()
        progress.advance(task, len(piece))
