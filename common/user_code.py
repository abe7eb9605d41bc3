"""Functions that users bring, by import path."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from brain_align.common.errors import UserError


def user_function(path: str, setting: str) -> tuple[Callable[..., Any], ModuleType]:
    """The function at `module:function`, and its module.

    Args:
        path: where it is.
        setting: the recipe's setting that names it, for errors.

    Raises:
        UserError: there is no such module or function, or importing the module fails.
    """
    module_name, _, function_name = path.partition(":")
    with _importing(module_name, setting):
        module = importlib.import_module(module_name)
    with _importing(path, setting):
        function = getattr(module, function_name, None)  # one that is exported lazily (PEP 562) is imported only here
    if not callable(function):
        raise UserError(f"{setting}: {module_name} has no function {function_name!r}.")
    return function, module


@contextmanager
def _importing(what: str, setting: str) -> Iterator[None]:
    """The block runs what a user's module does when it is imported."""
    try:
        yield
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and a script may end
        reason = f"it ends with status {error.code}" if isinstance(error, SystemExit) else error
        raise UserError(f"{setting}: {what!r} cannot be imported: {reason}") from error
