"""`brain score`: rewards for a file of prompts and outputs by a recipe's scorers, which run as in a run."""

import asyncio
import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from brain_align.common.config.recipe import Recipe
from brain_align.common.data.row_files import read_rows
from brain_align.common.data.text_groups import text_group
from brain_align.common.errors import UserError
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.deploy.commands.output import check_output, new_lines, new_output
from brain_align.deploy.conductor.group_scorer import GroupScorer, scorers_at_work
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.resolve import resolve, run_directory
from brain_align.deploy.run.start import reporter
from brain_align.deploy.services.scoring_pools import scoring_pools

_ROWS_A_PART = 16


Advance = Callable[[int], object]
"""Is told how many rows more are done."""

Write = Callable[[str], object]
"""Gets a line of the output, without its end."""


@dataclass
class Outcome:
    """What came of a file.

    Attributes:
        rows, outputs: how many were scored.
        missing: by scorer, how many values are null.
        errors: by scorer, the first reason.
    """

    rows: int = 0
    outputs: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)


def score(recipe: Recipe, source: Path, target: Path, console: Console, *, force: bool) -> None:
    """Score a file; the target appears whole or not at all.

    Args:
        recipe: its `scorers` are used, all of them.
        source: rows with `prompt` and `outputs`: .jsonl, .jsonl.gz, .parquet or Arrow.
        target: gets a row {"prompt", "outputs", "scores": {NAME: [...]}} each, and "errors" where values are null.
        console: for the progress bar and the result.
        force: whether a target that exists is replaced.

    Raises:
        UserError: something is wrong with the file, a scorer or the cluster.
        PipelineError: a scorer failed for good, or for too many rows.
    """
    bar = Progress(TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    check_output(target, force=force)
    count = sum(1 for _ in read_texts(source))
    resolved = resolved_for_scoring(recipe, list(recipe.scorers), run_directory(recipe), console)
    with (
        new_output(target, force=force) as temporary,
        _logs_beside(target) as logs,
        new_lines(temporary, target) as write,
        bar,
    ):
        take_over_golden(recipe, recipe.scorers, logs)
        task = bar.add_task("", total=count)
        outcome = _score_with_services(resolved, logs, source, write, lambda rows: bar.advance(task, rows))
    console.print(f"{target}: {outcome.outputs} outputs of {outcome.rows} prompts", highlight=False, soft_wrap=True)
    for name, missing in outcome.missing.items():
        reason = outcome.errors[name]
        console.print(f"WARNING: {name} has no value for {missing} outputs: {reason}", highlight=False, soft_wrap=True)


@contextmanager
def _logs_beside(target: Path) -> Iterator[RunDirectory]:
    """A directory for the services' logs; it goes if there are none, as when the cluster is too small."""
    logs = RunDirectory(target.absolute().with_name(f"{target.name}.scoring"))
    shutil.rmtree(logs.root, ignore_errors=True)
    try:
        yield logs
    finally:
        if not logs.logs.exists():
            shutil.rmtree(logs.root, ignore_errors=True)


def _score_with_services(recipe: Recipe, logs: RunDirectory, source: Path, write: Write, advance: Advance) -> Outcome:
    with scoring_pools(recipe, list(recipe.scorers), logs) as pools:

        async def run() -> Outcome:
            most = 2 * max(scorer.replicas for scorer in recipe.scorers.values())
            async with scorers_at_work(pools, recipe) as scorers:
                return await score_rows(read_texts(source), scorers, write, advance, most)

        return asyncio.run(run())


async def score_rows(
    texts: Iterable[tuple[str, list[str]]],
    scorers: Mapping[str, GroupScorer],
    write: Write,
    advance: Advance,
    most: int,
) -> Outcome:
    """Score rows as they come, and write them in their order.

    Args:
        texts: prompts with their outputs.
        scorers: by name, at work.
        write: gets a line of JSON a row.
        advance: is told of rows that are written.
        most: parts of some rows under way, so that memory does not grow with the file.
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
        while part := list(islice(rows, _ROWS_A_PART)):
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
    """Prompts and their outputs, row by row.

    Raises:
        UserError: the file or a row of it is not what it should be (named).
    """
    empty = True
    for number, row in enumerate(read_rows(source, ("prompt", "outputs")), start=1):
        prompt, outputs = row.get("prompt"), row.get("outputs")
        if not isinstance(prompt, str):
            raise UserError(f"{source}, row {number}, has no text under `prompt`; fix or remove the row.")
        if not isinstance(outputs, list) or not outputs or not all(isinstance(output, str) for output in outputs):
            raise UserError(f"{source}, row {number}, has no list of texts under `outputs`; fix or remove the row.")
        yield prompt, outputs
        empty = False
    if empty:
        raise UserError(f"{source} has no rows.")


def resolved_for_scoring(recipe: Recipe, scorers: Sequence[str], run: RunDirectory, console: Console) -> Recipe:
    """Resolve a recipe as far as the named scorers need it, and check that they can be loaded.

    Args:
        recipe: as it was read.
        scorers: of the recipe.
        run: the directory of the recipe's run, which need not exist; see `resolve`.
        console: shows how data is prepared.

    Raises:
        UserError: the data cannot be prepared, or a scorer cannot be loaded.
    """
    from brain_align.scorer.catalogue import check_scorer  # torch and transformers: not for a file that is refused

    resolved = resolve(recipe, reporter(console), begun=run, scorers=scorers)
    for name in scorers:
        check_scorer(name, resolved.recipe.scorers[name])
    return resolved.recipe


def take_over_golden(recipe: Recipe, scorers: Iterable[str], logs: RunDirectory) -> list[str]:
    """Have scorers compared with the golden values of the recipe's run.

    Returns:
        For which of them the run has any.

    Raises:
        UserError: they cannot be copied.
    """
    run = run_directory(recipe)
    found = [name for name in scorers if run.golden(name).exists()]
    try:
        for name in found:
            logs.golden_values.mkdir(parents=True, exist_ok=True)
            shutil.copy(run.golden(name), logs.golden(name))
    except OSError as error:
        copied = f"Cannot copy {run.golden_values} to {logs.golden_values}"
        raise UserError(f"{copied}: {error.strerror or error}; make both accessible.") from None
    return found
