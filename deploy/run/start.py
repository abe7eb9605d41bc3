"""Parts of every start of a run or a comparison: clock, terminal, log, lock, starting again."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import LearnerOutOfMemoryError, PipelineError, TryAgainError, UserError
from brain_align.common.logs import log_here
from brain_align.common.system.locks import file_lock
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import LOCK, RunDirectory

T = TypeVar("T")


class Stopwatch:
    """Seconds by stage of this start of the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's duration to a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - began)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def total(self) -> dict[str, float]:
        """Return all stages, and the time since the start."""
        return {**self.seconds, "total": time.monotonic() - self._began}


def reporter(console: PlainConsole) -> Callable[[str], None]:
    """Return a function that prints one line of text as it is, however long."""
    return partial(console.print, soft_wrap=True)


@contextlib.contextmanager
def own_log(directory: RunDirectory) -> Iterator[None]:
    """Send what this process and its libraries log to the run's log file, not to the terminal."""
    path = directory.log("brain")
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    log_here(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    except (UserError, PipelineError) as error:
        root.error("%s", error)
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def locked(directory: RunDirectory) -> Iterator[None]:
    """Lock the run directory until this process ends, however it does; refuse one that is locked or not writable."""
    with contextlib.ExitStack() as held:
        try:
            directory.root.mkdir(parents=True, exist_ok=True)
            held.enter_context(file_lock(directory.root / LOCK))
        except BlockingIOError:
            raise TryAgainError(
                f"Another process is running on {directory.root}; wait for it, stop it, or set another run.dir."
            ) from None
        except OSError as error:
            raise UserError(f"Cannot use the run directory {directory.root}: {error.strerror}; set run.dir.") from None
        yield


def with_smaller_passes(run: Callable[[Recipe], T], recipe: Recipe, report: Callable[[str], None]) -> T:
    """Run, and resume with half the token budget as often as the learner has too little memory for a pass.

    A resumed run continues from the last checkpoint and repeats the recorded steps on the same groups.
    """
    while True:
        try:
            return run(recipe)
        except LearnerOutOfMemoryError as error:
            report(f"{error} The services start again with learner.micro_batch_tokens={error.smaller}.")
            learner = recipe.learner.model_copy(update={"micro_batch_tokens": error.smaller})
            recipe = recipe.model_copy(update={"learner": learner})
