"""Rewards from a Python function of texts: rules, verifiers, ground truths."""

import asyncio
import inspect
import itertools
import tokenize
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any

import pyarrow as pa
from typing_extensions import override

from brain_align.common.config.scorers import FunctionSection
from brain_align.common.guest_code import GuestCode
from brain_align.common.identity import digest
from brain_align.common.user_code import PACKAGE, user_function
from brain_align.scorer.kinds.time_limit import OverdueError, time_limit
from brain_align.scorer.scorer import EXACT, Annotation, Group, Kind, Scorer, annotate, numbers_or_null

RewardFunction = Callable[[list[str], list[str]], Any]
"""(prompts, outputs), equally many -> one value for each pair"""


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
            with GuestCode(), time_limit(self._timeout):
                result = self._function([prompt] * len(outputs), list(outputs))
        except OverdueError:
            return nothing, [f"the function returned no values within {self._timeout:g} s"]
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the user's code may raise anything
            return nothing, [f"the function raised {type(error).__name__}: {error}"]
        return numbers_or_null(result, len(outputs), "the function", what)


def load_function(name: str, settings: FunctionSection) -> FunctionScorer:
    """Make the scorer of the function at an import path.

    Raises:
        UserError: there is no such module or function, or importing the module fails.
    """
    function, module = user_function(settings.function, f"scorers.{name}.function")
    source = _source_of(module).replace(PACKAGE, "")
    identity = digest("function", settings.function.removeprefix(PACKAGE), source)
    return FunctionScorer(name, identity, _answering(function), settings.timeout)


def _answering(function: RewardFunction) -> RewardFunction:
    """Return a function that ends with a list, where the user's returns an array, a tensor, a generator or a coroutine.

    Whatever these compute is part of the call, and of its time.
    """

    @wraps(function)
    def answer(prompts: list[str], outputs: list[str]) -> Any:
        result = function(prompts, outputs)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        if hasattr(result, "tolist"):  # an array of any library
            result = result.tolist()
        if isinstance(result, Iterable) and not isinstance(result, str | bytes | Mapping | Set):
            return [_number(value) for value in itertools.islice(result, len(outputs) + 1)]
        return result

    return answer


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _number(value: Any) -> Any:
    """Return a tensor of one number as that number."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _source_of(module: ModuleType) -> str:
    """Return a module's source; empty for one that is built in or compiled."""
    try:
        source = inspect.getsourcefile(module)
    except TypeError:  # built in
        return ""
    if not source:
        return ""
    with tokenize.open(source) as file:  # in the encoding that the source declares
        return file.read()


KIND = Kind(
    section=FunctionSection,
    load=lambda name, settings, _: load_function(name, settings),
    check=load_function,
    tolerance=lambda _: EXACT,
    must_answer=False,  # a function may rightly have no values for the golden texts
    reads_turns=lambda _: True,
    reading=lambda _: None,
    source=lambda settings: settings.function,
)
