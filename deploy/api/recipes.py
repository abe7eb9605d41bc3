"""Recipes as Python gives them: files, names, run directories or nested settings, with overrides as values."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.deploy.run.recipe_files import load_recipe, overridden

AnyRecipe = str | Path | Mapping[str, Any]
"""A YAML file, the name of a shipped recipe (`demo`), the directory of a run, or nested settings."""


def read_recipe(recipe: AnyRecipe, overrides: Mapping[str, Any]) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        recipe: see `AnyRecipe`; a file of a shipped recipe's name takes precedence.
        overrides: values by dotted name, or nested by section; a section changes only the settings that it names.

    Raises:
        UserError: there is no such recipe, or a setting is refused.
    """
    changes = [f"{name}={_yaml(name, value)}" for name, value in _dotted(overrides)]
    if isinstance(recipe, Mapping):
        return overridden(copy.deepcopy(dict(recipe)), changes, "the recipe")
    return load_recipe(recipe, changes)


def _dotted(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in overrides.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _yaml(name: str, value: Any) -> str:
    """Write a value as an override has it."""
    plain = str(value) if isinstance(value, Path) else value
    try:
        text = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), allow_unicode=True)
    except yaml.YAMLError:
        raise UserError(f"{name} is a {type(value).__name__}; give a plain value, list or dictionary.") from None
    return text.strip().removesuffix("...").strip()
