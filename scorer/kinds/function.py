"""Rewards from a Python function of texts: rules, verifiers, ground truths."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa

from brain_align.common.config.scorers import FunctionSection
from brain_align.common.identity import digest
from brain_align.common.user_code import PACKAGE, user_function
from brain_align.scorer.kinds.time_limit import OverdueError, time_limit
from brain_align.scorer.scorer import Annotation, Group, annotate, numbers_or_null

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]
"""(prompts, outputs), equally many -> a value for each"""


class FunctionScorer:
    """A function's value for every output of a group, in one call, and for its gold output, in another.

    What the function gets wrong (an exception, a wrong number of values, a value that is no finite number) is
    null with its error, and never made up; likewise where it takes too long.
    """

    def __init__(self, name: str, digest: str, function: RewardFunction, timeout: float) -> None:
        """Take a function.

        Args:
            name: of the scorer.
            digest: of the scorer.
            function: gives the values.
            timeout: seconds that one call may take.
        """
        self.name = name
        self.digest = digest
        self._function = function
        self._timeout = timeout

    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """See `Scorer`."""
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
            return nothing, [f"the function gave no values within {self._timeout:g} s"]
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
            return nothing, [f"the function raised {type(error).__name__}: {error}"]
        if isinstance(result, np.ndarray):
            result = result.tolist()
        return numbers_or_null(result, len(outputs), "the function", what)


def load_function(name: str, settings: FunctionSection) -> FunctionScorer:
    """Make a scorer of the function at an import path.

    Args:
        name: of the scorer.
        settings: its section of the recipe.

    Raises:
        UserError: there is no such module or function, or importing the module fails.
    """
    function, module = user_function(settings.function, f"scorers.{name}.function")
    source = _source_of(module).replace(PACKAGE, "")
    identity = digest("function", settings.function.removeprefix(PACKAGE), source)
    return FunctionScorer(name, identity, function, settings.timeout)


def _source_of(module: ModuleType) -> str:
    """A module's source; nothing of one that is built in or compiled."""
    try:
        source = inspect.getsourcefile(module)
    except TypeError:  # built in
        return ""
    return Path(source).read_text(encoding="utf-8") if source else ""
