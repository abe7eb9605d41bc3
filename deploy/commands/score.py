"""Score a file of prompts and outputs.

Scores prompts and outputs with every scorer of a recipe, as a run does.

Examples:
  brain score my.yaml --input outputs.jsonl --output scores.jsonl
"""

import argparse
import asyncio
import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.data.row_files import read_rows
from brain_align.common.data.text_groups import text_group
from brain_align.common.errors import UserError
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.deploy.commands.arguments import add_overrides, add_recipe
from brain_align.deploy.commands.output import check_output, new_lines, new_output
from brain_align.deploy.commands.scoring import Advance, progress_bar, resolved_for_scoring, take_over_golden
from brain_align.deploy.conductor.group_scorer import GroupScorer, scorers_at_work
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import run_directory
from brain_align.deploy.run.start import reporter
from brain_align.deploy.services.scoring_pools import scoring_pools

GROUP = "Inspect"

_PART_ROWS = 16
_TRIED_OUTPUTS = 2

Write = Callable[[str], object]  # writes a line of the output, without its end


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_recipe(parser)
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help='rows {"prompt", "outputs": […]}: .jsonl or .parquet'
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help='gets {"prompt", "outputs", "scores": {NAME: […]}}'
    )
    parser.add_argument("--force", action="store_true", help="replace an output that exists")
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Score the file."""
    recipe = load_recipe(options.recipe, options.overrides)
    score(recipe, options.input, options.output, PlainConsole(), force=options.force)


@dataclass
class Outcome:
    """The result of scoring a file."""

    rows: int = 0
    outputs: int = 0
    missing: Counter[str] = field(default_factory=Counter)  # null values per scorer
    errors: dict[str, str] = field(default_factory=dict)  # the first reason for one, per scorer


def score(recipe: Recipe, source: Path, target: Path, console: PlainConsole, *, force: bool) -> None:
    """Score a file with all scorers of a recipe; the target appears whole or not at all.

    The source has rows with `prompt` and `outputs` (.jsonl, .jsonl.gz, .parquet or Arrow); the target gets a row
    {"prompt", "outputs", "scores": {NAME: [...]}} for each, and "errors" where values are null.

    Raises:
        UserError: something is wrong with the file, a scorer or the cluster.
        PipelineError: a scorer failed for good, or for too many rows.
    """
    bar = progress_bar("scoring", console)
    check_output(target, force=force)
    count, trial = _looked_through(source)
    resolved = resolved_for_scoring(recipe, list(recipe.scorers), run_directory(recipe), console)
    with (
        new_output(target, force=force) as temporary,
        _logs_beside(target) as logs,
        new_lines(temporary, target) as write,
        bar,
    ):
        take_over_golden(recipe, recipe.scorers, logs)
        task = bar.add_task("", total=count)
        say = reporter(console)
        outcome = _score_with_services(resolved, logs, trial, source, write, lambda rows: bar.advance(task, rows), say)
    console.print(f"{target}: {outcome.outputs} outputs of {outcome.rows} prompts", soft_wrap=True)
    for name, missing in outcome.missing.items():
        reason = outcome.errors[name]
        console.print(f"WARNING: {name} has no value for {missing} outputs: {reason}", soft_wrap=True)


@contextmanager
def _logs_beside(target: Path) -> Iterator[RunDirectory]:
    """Yield a directory for the services' logs; remove it if there are none, as when the cluster is too small."""
    logs = RunDirectory(target.absolute().with_name(f"{target.name}.scoring"))
    shutil.rmtree(logs.root, ignore_errors=True)
    try:
        yield logs
    finally:
        if not logs.logs.exists():
            shutil.rmtree(logs.root, ignore_errors=True)


def _looked_through(source: Path) -> tuple[int, pa.RecordBatch]:
    """Check all rows; return how many there are, and groups of a few of them, from all over the file, for a trial."""
    tried = []
    count = 0
    for count, (prompt, outputs) in enumerate(read_texts(source), start=1):
        if count.bit_count() == 1:  # 1, 2, 4, 8, …
            tried.append(text_group(f"trial-{count}", prompt, outputs[:_TRIED_OUTPUTS]))
    return count, batch_from_rows(GROUPS, tried)


def _score_with_services(
    recipe: Recipe,
    logs: RunDirectory,
    trial: pa.RecordBatch,
    source: Path,
    write: Write,
    advance: Advance,
    say: Callable[[str], object],
) -> Outcome:
    with scoring_pools(recipe, list(recipe.scorers), logs) as pools:

        async def run() -> Outcome:
            most = 2 * max(scorer.replicas for scorer in recipe.scorers.values())
            async with scorers_at_work(pools, recipe, say, trial) as scorers:
                return await score_rows(read_texts(source), scorers, write, advance, most)

        return asyncio.run(run())


async def score_rows(
    texts: Iterable[tuple[str, list[str]]],
    scorers: Mapping[str, GroupScorer],
    write: Write,
    advance: Advance,
    most: int,
) -> Outcome:
    """Score rows as they come, and write them in their order, one line of JSON each.

    At most `most` parts of some rows are under way at a time, so that memory does not grow with the file.
    """
    outcome = Outcome()
    under_way: deque[asyncio.Task[list[dict[str, Any]]]] = deque()

    async def write_oldest() -> None:
        rows = await under_way.popleft()
        for row in rows:
            _count(row, outcome)
            write(json.dumps(row, ensure_ascii=False, allow_nan=False))
        advance(len(rows))

    rows = enumerate(texts)
    try:
        while part := list(islice(rows, _PART_ROWS)):
            if len(under_way) == most:
                await write_oldest()
            under_way.append(asyncio.create_task(_score_part(part, scorers)))
        while under_way:
            await write_oldest()
    finally:
        for task in under_way:
            task.cancel()
    return outcome


async def _score_part(
    part: list[tuple[int, tuple[str, list[str]]]], scorers: Mapping[str, GroupScorer]
) -> list[dict[str, Any]]:
    groups = batch_from_rows(GROUPS, [text_group(str(number), prompt, outputs) for number, (prompt, outputs) in part])
    tables = await asyncio.gather(*(scorer.score(groups) for scorer in scorers.values()))
    scores = dict(zip(scorers, tables, strict=True))
    return [_row(prompt, outputs, scores, place) for place, (_, (prompt, outputs)) in enumerate(part)]


def _row(prompt: str, outputs: list[str], scores: Mapping[str, pa.RecordBatch], place: int) -> dict[str, Any]:
    values = {name: batch["values"][place].as_py() for name, batch in scores.items()}
    errors = {name: error for name, batch in scores.items() if (error := batch["error"][place].as_py())}
    row = {"prompt": prompt, "outputs": outputs, "scores": values}
    return {**row, "errors": errors} if errors else row


def _count(row: dict[str, Any], outcome: Outcome) -> None:
    outcome.rows += 1
    outcome.outputs += len(row["outputs"])
    for name, values in row["scores"].items():
        if missing := values.count(None):
            outcome.missing[name] += missing
            outcome.errors.setdefault(name, row.get("errors", {}).get(name, "no reason was given"))


def read_texts(source: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield prompts and their outputs, row by row; refuse a file or a row that cannot be used."""
    empty = True
    for number, row in enumerate(read_rows(source, ("prompt", "outputs")), start=1):
        prompt, outputs = row.get("prompt"), row.get("outputs")
        if not isinstance(prompt, str):
            raise UserError(f"{source}, row {number}: `prompt` must be a string; fix or remove the row.")
        if not isinstance(outputs, list) or not outputs or not all(isinstance(output, str) for output in outputs):
            raise UserError(f"{source}, row {number}: `outputs` must be a list of strings; fix or remove the row.")
        yield prompt, outputs
        empty = False
    if empty:
        raise UserError(f"{source} has no rows; nothing can be scored.")
