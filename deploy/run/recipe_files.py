"""Recipes on disk: YAML, dotted overrides from the command line, and the saved configuration of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.validation import parse_recipe
from brain_align.common.errors import UserError


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.sub=value` overrides, whose values are read as YAML.

    Raises:
        UserError: the file is missing or is no YAML mapping, an override has no `=`, or a setting is refused.
    """
    return overridden(_read_yaml(path), overrides, path.name)


def overridden(settings: dict[str, Any], overrides: Sequence[str], where: str) -> Recipe:
    """The recipe of nested settings, which are changed by the overrides.

    Args:
        settings: of a recipe.
        overrides: as for `load_recipe`.
        where: what to call the settings in an error.

    Raises:
        UserError: an override has no `=`, or a setting is refused.
    """
    for override in overrides:
        apply_override(settings, override)
    return parse_recipe(settings, where)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = load_yaml(path.read_text())
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file; a recipe is YAML.") from None
    except OSError as error:
        shipped = ", ".join(sorted(recipe.name for recipe in (Path(__file__).parents[1] / "recipes").glob("*.yaml")))
        raise UserError(f"Cannot read the recipe {path}: {error.strerror}; shipped recipes are {shipped}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {yaml_problem(error)}.") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} is no recipe: it must hold `name: value` settings.")
    return settings


class _Loader(yaml.SafeLoader):
    """Says of a value that Python cannot hold, such as the date 2024-13-45, where it stands."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            problem = str(error).partition(";")[0]
        except (KeyError, AttributeError, IndexError):  # what PyYAML makes of a tag that its text does not suit
            problem = f"{node.value!r} is no {node.tag.rpartition(':')[2]}"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def load_yaml(text: str) -> Any:
    """What a YAML text holds, of plain values alone.

    Raises:
        yaml.YAMLError: it is not valid, or a value of it is none that Python can hold.
    """
    return yaml.load(text, Loader=_Loader)


def yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, and where, on one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Put one `key.sub=value` into nested settings.

    Raises:
        UserError: it has no `=`, or treats a value as a section.
    """
    name, separator, value = override.partition("=")
    if not separator or not name:
        raise UserError(f"{override!r} is no override; write it as section.setting=value.")
    *sections, last = name.split(".")
    target = settings
    for section in sections:
        found = target.setdefault(section, {})
        if not isinstance(found, dict):
            raise UserError(f"{override!r}: {section} is a value, not a section of settings.")
        target = found
    try:
        target[last] = load_yaml(value)
    except yaml.YAMLError:
        target[last] = value  # such as a path with a colon: text as it stands


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML, in the order of the recipe."""
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
