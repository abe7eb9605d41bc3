"""Rewards from a Python function of texts: rules, verifiers, ground truths."""

import inspect
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType

import numpy as np
import pyarrow as pa
from typing_extensions import override

from brain_align.common.config.scorers import FunctionSection
from brain_align.common.identity import digest
from brain_align.common.user_code import PACKAGE, user_function
from brain_align.scorer.scorer import EXACT, Annotation, Group, Kind, Scorer, annotate, numbers_or_null

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]
"""(prompts, outputs), equally many -> one value for each pair"""

_AGAIN = 1.0
"""Seconds until the error is raised again in a block that swallowed it, or that waits for its threads."""


@dataclass
class FunctionScorer(Scorer):
    """A function's value for every output of a group, in one call, and for its gold output, in another.

    Values are null, with the error, if the function raises, returns the wrong number of values or one that is not
    finite, or takes too long.
    """

    name: str
    digest: str
    _function: RewardFunction
    _timeout: float  # seconds per call

    @override
    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return annotate(self, batch, self._score_group)

    def _score_group(self, group: Group) -> Annotation:
        prompt, gold = group["prompt_text"], group["gold_text"]
        values, errors = self._values(prompt, [output["text"] for output in group["outputs"]], "output")
        if gold is None:
            return Annotation(values, errors=tuple(errors))
        gold_values, gold_errors = self._values(prompt, [gold], "gold output")
        return Annotation(values, gold_values[0], (*errors, *gold_errors))

    def _values(self, prompt: str, outputs: list[str], what: str) -> tuple[list[float | None], list[str]]:
        nothing: list[float | None] = [None] * len(outputs)
        try:
            with time_limit(self._timeout):
                result = self._function([prompt] * len(outputs), list(outputs))
        except OverdueError:
            return nothing, [f"the function returned no values within {self._timeout:g} s"]
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
            return nothing, [f"the function raised {type(error).__name__}: {error}"]
        if isinstance(result, np.ndarray):
            result = result.tolist()
        return numbers_or_null(result, len(outputs), "the function", what)


def load_function(name: str, settings: FunctionSection) -> FunctionScorer:
    """Make the scorer of the function at an import path.

    Raises:
        UserError: there is no such module or function, or importing the module fails.
    """
    function, module = user_function(settings.function, f"scorers.{name}.function")
    source = _source_of(module).replace(PACKAGE, "")
    identity = digest("function", settings.function.removeprefix(PACKAGE), source)
    return FunctionScorer(name, identity, function, settings.timeout)


def _source_of(module: ModuleType) -> str:
    """Return a module's source; empty for one that is built in or compiled."""
    try:
        source = inspect.getsourcefile(module)
    except TypeError:  # built in
        return ""
    return Path(source).read_text(encoding="utf-8") if source else ""


class OverdueError(BaseException):
    """The time is up. Not an `Exception`, so that code that swallows those does not swallow this one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after this many seconds by raising an error inside it, and again every second afterwards.

    Python delivers the error to the main thread between two instructions, and interrupts sleeping and waiting there:
    endless loops, locks, sockets, regular expressions. The block cannot be interrupted in another thread, or inside
    native code that ignores signals; then only the limit on the whole call remains (`timeouts.lease`), after which the
    process is killed. SIGALRM is in use meanwhile: a block that sets its own has no limit.

    Raises:
        OverdueError: the time was up, even if the block swallowed the error; its result must not be used.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    is_overdue = is_over = False

    def overdue(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_overdue
        if not is_over:
            is_overdue = True
            raise OverdueError

    before = signal.signal(signal.SIGALRM, overdue)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if is_overdue:
            raise OverdueError


KIND = Kind(
    section=FunctionSection,
    load=lambda name, settings, _: load_function(name, settings),
    check=load_function,
    tolerance=lambda _: EXACT,
    must_answer=False,  # a function may rightly have no values for the golden texts
    reads_turns=lambda _: True,
    source=lambda settings: settings.function,
)
