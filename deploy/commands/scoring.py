"""Parts of the commands that score: `brain score`, `brain store rescore` and `brain doctor`."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.resolve import resolve, run_directory
from brain_align.deploy.run.start import reporter
from brain_align.deploy.worlds.pretrained.report import warnings_of

Advance = Callable[[int], object]  # counts further rows that are done


def progress_bar(what: str, console: PlainConsole) -> Progress:
    """Return a bar that counts rows."""
    return Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)


def progress_over(what: str, console: PlainConsole) -> Callable[[int], AbstractContextManager[Advance]]:
    """Return what shows a bar over a number of rows while a block runs, which gets what counts them."""

    @contextmanager
    def progress(total: int) -> Iterator[Advance]:
        with progress_bar(what, console) as bar:
            task = bar.add_task("", total=total)
            yield lambda rows: bar.advance(task, rows)

    return progress


def resolved_for_scoring(recipe: Recipe, scorers: Sequence[str], run: RunDirectory, console: PlainConsole) -> Recipe:
    """Resolve a recipe as far as the named scorers need it, and check that they can be loaded; see `resolve`.

    Reward models that are known to be of little use are named.
    """
    from brain_align.scorer.catalogue import check_scorer  # torch and transformers: not for a file that is refused

    resolved = resolve(recipe, reporter(console), begun=run, scorers=scorers)
    for name in scorers:
        check_scorer(name, resolved.recipe.scorers[name])
    for warning in warnings_of(resolved.recipe, scorers):
        console.print(warning, soft_wrap=True)
    return resolved.recipe


def take_over_golden(recipe: Recipe, scorers: Iterable[str], logs: RunDirectory) -> list[str]:
    """Copy the golden values of the recipe's run to compare its scorers with; return the scorers that have some."""
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
