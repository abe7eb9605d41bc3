"""Tables whose entries stand in the files of a folder, so that a new entry needs no second file."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any


def entries_of(package: ModuleType, name: str) -> list[Any]:
    """Return the value of `name` in every module of a package that has one, in the order of the modules' names."""
    found = pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    modules = [importlib.import_module(module.name) for module in found]
    return [getattr(module, name) for module in modules if hasattr(module, name)]
