"""Functions that users bring, by import path."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from brain_align.common.errors import UserError
from brain_align.common.guest_code import GuestCode, guarded

DIRECTORY = "BRAIN_FUNCTIONS"
"""The environment variable of an actor that names the directory in which its run was started."""

PACKAGE = "brain_align."
"""The beginning of this project's import paths; recipes and saved configurations of earlier versions leave it out.

Whatever is compared with those, or with their digests, leaves it out as well.
"""


def add_to_path(directory: str) -> None:
    """Have the modules of a user's directory found: after all libraries, but before the folders of this repository.

    A `torch.py` that lies there is not the library, wherever Python or Ray has put the directory on the path. The
    repository is on the path of an editable install; there `scorer` or `common` would be found by their bare names.
    """
    here = os.path.realpath(directory)
    others = [entry for entry in sys.path if os.path.realpath(entry) != here]
    repositories = [entry for entry in others if _is_repository(Path(entry))]
    sys.path[:] = [*(entry for entry in others if entry not in repositories), directory, *repositories]


def _is_repository(place: Path) -> bool:
    """Return whether a place is this project's repository, and not a folder in which the package was installed."""
    return (place / "pyproject.toml").is_file() and (place / "brain_align").is_dir()


def user_function(path: str, setting: str) -> tuple[Callable[..., Any], ModuleType]:
    """Import the function at `module:function`, which `setting` names; return it, guarded, with its module.

    All code of users comes from here: whatever it does, importing or called, this process goes on (guest_code.py).
    A path into this project may leave out `brain_align.`; a module of the user's own that has that name takes
    precedence.

    Raises:
        UserError: there is no such module or function, or importing the module fails.
    """
    module_name, _, function_name = path.partition(":")
    with _importing(module_name, setting):
        module = _module(module_name)
    with _importing(path, setting):
        function = getattr(module, function_name, None)  # a lazy export (PEP 562) is imported only here
    if not callable(function):
        raise UserError(f"{setting}: {module_name} has no function {function_name!r}.")
    return guarded(function), module


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not _is_missing(name, error):
            raise  # the module is there, and what it imports is not
        try:
            return importlib.import_module(PACKAGE + name)
        except ModuleNotFoundError as own_error:
            if _is_missing(PACKAGE + name, own_error):
                raise error from None  # the name as the user wrote it
            raise


def _is_missing(name: str, error: ModuleNotFoundError) -> bool:
    """Return whether the error says that the module itself, or a package that it would be in, does not exist."""
    return f"{name}.".startswith(f"{error.name}.")


@contextmanager
def _importing(what: str, setting: str) -> Iterator[None]:
    """Turn whatever a user's module raises while it is imported into a `UserError`."""
    try:
        with GuestCode():
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = f"it ends with status {error.code}" if isinstance(error, SystemExit) else error
        raise UserError(f"{setting}: {what!r} cannot be imported: {reason}") from error
