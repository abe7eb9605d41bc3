"""Runs from Python: start or resume one, and look at what it leaves."""

import asyncio
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from brain_align.common.config.inputs import PolicySection
from brain_align.common.logs import quiet_libraries
from brain_align.common.policies import PolicyRegistry
from brain_align.deploy.api.samples import Samples, open_store
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import RunDirectory, saved_recipe
from brain_align.deploy.run.recipe_files import AnyRecipe, load_recipe
from brain_align.deploy.run.resolve import resolve, run_directory
from brain_align.deploy.run.summary import read_summary

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Result = TypeVar("Result")


@dataclass(frozen=True)
class TrainedPolicy:
    """The best version of a run's policy on its validation prompts; the newest, where nothing was evaluated.

    `path` is an adapter of the model `base`, or a whole model, whose `base` is None.
    """

    path: Path
    base: str | None
    version: int
    settings: PolicySection
    window: int
    """The most tokens (prompt and output) that the run's texts could have."""

    def load(self, device: str = "cpu") -> "PreTrainedModel | PeftModel":
        """Load the model as the run evaluates it: in the policy's dtype and quantisation, without dropout.

        Raises:
            UserError: it cannot be loaded.
        """
        from brain_align.common.nn.models.adapters import load_adapter
        from brain_align.common.nn.models.causal_lm import load_causal_lm

        source = self.base or str(self.path)
        settings = self.settings
        model = load_causal_lm(source, settings.dtype, device, settings.quantization, window=self.window)
        return load_adapter(model, self.path) if self.base else model

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the policy's tokenizer."""
        from brain_align.common.nn.models.causal_lm import load_tokenizer

        return load_tokenizer(self.settings.tokenizer or self.settings.model)


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run."""

    directory: Path
    summary: dict[str, Any]
    """The run's summary.json: the figures of test prompts `before` and `after`, `best_version`, `seconds`, …."""

    @cached_property
    def policy(self) -> TrainedPolicy:
        """The trained policy, not yet loaded.

        Raises:
            UserError: its files, or the prepared data that its model lies in, have been removed.
        """
        directory = RunDirectory(self.directory)
        recipe = resolve(saved_recipe(directory), None, begun=directory).recipe
        settings = recipe.policy
        best = self.summary["best_version"]
        if settings.method == "lora":
            return TrainedPolicy(directory.adapter, settings.model, best, settings, recipe.window)
        return TrainedPolicy(PolicyRegistry(directory.policies).verify(best).path, None, best, settings, recipe.window)

    @cached_property
    def store(self) -> Samples:
        """The samples of the run, opened when first asked for."""
        return open_store(self.directory)


def run(recipe: AnyRecipe, /, *, console: Console | None = None, **overrides: Any) -> RunResult:
    """Run a recipe to its end; resume it where its run directory was begun; return at once where it has ended.

    Everything is as with `brain run`: services start as Ray actors, and progress is printed. Functions that the recipe
    names are imported from the current directory, the script's directory and PYTHONPATH, in the actors as well.

    Args:
        recipe: a YAML file, the name of a shipped recipe (`demo`), the directory of a run, or nested settings.
        console: where progress is shown; default: on stdout. `Console(quiet=True)` shows nothing.
        overrides: settings that replace the recipe's: nested, `sampling={"n": 8}`, or dotted, `**{"sampling.n": 8}`.

    Raises:
        UserError: a setting, something that the recipe names, or the run directory is refused.
        PipelineError: a service failed for good. Nothing that was committed is lost: run it again to resume.
    """
    read = load_recipe(recipe, overrides)
    quiet_libraries()
    from brain_align.deploy.pipeline import run_recipe  # Ray: not for a recipe that is refused

    shown = PlainConsole() if console is None else PlainConsole.like(console)
    without_event_loop(lambda: run_recipe(read, shown))
    directory = run_directory(read)
    summary = read_summary(directory)
    assert summary is not None, "a run that ends leaves it"
    return RunResult(directory.root, summary)


def without_event_loop(start: Callable[[], Result]) -> Result:
    """Run a program that has event loops of its own, in another thread where this one has one: in a notebook.

    An interrupt (Ctrl-C, a notebook's stop button) ends the program in either case.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return start()
    results: list[Result] = []
    failures: list[BaseException] = []
    ended = Event()  # `Thread.join` takes a thread for ended once its wait was interrupted

    def work() -> None:
        try:
            results.append(start())
        except BaseException as error:  # noqa: BLE001 - it is raised below
            failures.append(error)
        finally:
            ended.set()

    thread = Thread(target=work)
    try:
        thread.start()
        ended.wait()
    except KeyboardInterrupt:
        interrupt = ctypes.py_object(KeyboardInterrupt)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), interrupt)
        ended.wait()
        raise
    if failures:
        raise failures[0]
    return results[0]
