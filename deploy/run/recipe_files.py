"""Recipes as users name them: YAML files, shipped recipes, runs and nested settings, with overrides."""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.validation import parse_recipe
from brain_align.common.errors import Problems, UserError
from brain_align.common.uris import check_uri
from brain_align.deploy.run.yaml_text import LARGEST, load_yaml, yaml_problem

AnyRecipe = str | Path | Mapping[str, Any]
"""A YAML file; else the name of a shipped recipe, with or without `.yaml`; a run directory; or nested settings."""

Overrides = Sequence[str] | Mapping[str, Any]
"""`section.setting=value`, read as YAML; or values by dotted name, or nested: a section changes only what it names."""


def load_recipe(recipe: AnyRecipe, overrides: Overrides = ()) -> Recipe:
    """Read a recipe and apply overrides, to a copy; refuse a missing or malformed recipe, overrides and settings."""
    if isinstance(recipe, Mapping):
        return overridden(_without_secrets(copy.deepcopy(dict(recipe))), overrides, "the recipe")
    check_uri(str(recipe), "The recipe")
    path = Path(recipe).expanduser()
    if not path.is_dir():
        return overridden(_without_secrets(_read_yaml(_existing(path))), overrides, path.name)
    config = path / "config.yaml"
    if not config.is_file():
        raise UserError(f"{path} is not a run directory (it has no config.yaml); name a recipe or a run directory.")
    settings = _read_yaml(config)
    if isinstance(settings.get("run"), dict):
        settings["run"]["dir"] = str(path.absolute())  # it may have been moved
    return overridden(settings, overrides, str(config))


def overridden(settings: dict[str, Any], overrides: Overrides, where: str) -> Recipe:
    """Apply overrides to nested settings, and return the recipe; a UserError names all refused ones, and `where`."""
    problems = Problems()
    for override in _dotted(overrides) if isinstance(overrides, Mapping) else overrides:
        with problems.noted():
            apply_override(settings, override)
    with problems.noted():
        recipe = parse_recipe(settings, where)
    problems.raise_any()
    return recipe


def _existing(path: Path) -> Path:
    """Return the file, or the shipped recipe of that name."""
    if path.exists():
        return path
    shipped = {recipe.name: recipe for recipe in (Path(__file__).parents[1] / "recipes").glob("*.yaml")}
    for name in (str(path), f"{path}.yaml"):
        if name in shipped:
            return shipped[name]
    beside = [str(file) for file in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), [*beside, *shipped], n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped recipes are {', '.join(sorted(shipped))}."
    raise UserError(f"There is no recipe or run directory {path}; {hint}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:  # perhaps a pipe, or a device without an end
            settings = load_yaml(file.read(LARGEST + 1))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; a recipe is YAML, written in UTF-8.") from None
    except OSError as error:
        raise UserError(f"Cannot read the recipe {path}: {error.strerror}; make it readable.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {yaml_problem(error)}.") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not a recipe: it must hold `name: value` settings.")
    return settings


def _without_secrets(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings from outside; refuse those with a secret before any message can show a value.

    What a run directory holds was accepted when it was written.
    """
    problems = Problems()
    for name, text in _texts(settings):
        with problems.noted():
            check_uri(text, name)
            _check_characters(text, name)
    problems.raise_any()
    return settings


def _texts(settings: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield all texts below nested settings, and their names."""
    if isinstance(settings, str):
        yield name, settings
    elif isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from _texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(settings, list | tuple):
        for number, value in enumerate(settings):
            yield from _texts(value, f"{name}[{number}]")


def _check_characters(text: str, name: str) -> None:
    """Refuse characters that neither files nor their names can hold."""
    for character in text:
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise UserError(
                f"{name} holds the character {character!a}, which is not text; remove it, or rename the file."
            )


def apply_override(settings: dict[str, Any], override: str | tuple[str, Any]) -> None:
    """Put one `section.setting=value`, or a dotted name and its value, into nested settings, or refuse it."""
    name, value = _parsed(override) if isinstance(override, str) else (override[0], _plain(*override))
    _without_secrets({name: value})
    *sections, last = name.split(".")
    target = settings
    for section in sections:
        found = target.setdefault(section, {})
        if not isinstance(found, dict):
            raise UserError(f"{name!r}: {section} is a value, not a section of settings.")
        target = found
    target[last] = value


def _parsed(override: str) -> tuple[str, Any]:
    name, separator, value = override.partition("=")
    if not separator or not name:
        raise UserError(f"{override!r} is not a valid override; write section.setting=value.")
    try:
        return name, load_yaml(value)
    except yaml.YAMLError:
        return name, value  # such as a path with a colon: text as it stands


def _dotted(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in overrides.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(name: str, value: Any) -> Any:
    """Return a value as a YAML file would give it."""
    try:
        return load_yaml(yaml.safe_dump(str(value) if isinstance(value, Path) else value))
    except yaml.YAMLError:
        raise UserError(f"{name} is a {type(value).__name__}; give a plain value, list or dictionary.") from None
