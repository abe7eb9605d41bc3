"""Functions that users bring, by import path."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from common.errors import UserError


def user_function(path: str, setting: str) -> tuple[Callable[..., Any], ModuleType]:
    """The function at `module:function`, and its module.

    Args:
        path: where it is.
        setting: the recipe's setting that names it, for errors.

    Raises:
        UserError: there is no such module or function, or importing the module fails.
    """
    module_name, _, function_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and a script may end
        reason = f"it ends with status {error.code}" if isinstance(error, SystemExit) else error
        raise UserError(f"{setting}: {module_name!r} cannot be imported: {reason}") from error
    function = vars(module).get(function_name)
    if not callable(function):
        raise UserError(f"{setting}: {module_name} has no function {function_name!r}.")
    return function, module
