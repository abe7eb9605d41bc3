"""From raw settings to a `Recipe`, or to one clear sentence for each thing that is wrong with them."""

import difflib
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from brain_align.common.config.objective_sections import ObjectiveBase
from brain_align.common.config.objectives import OBJECTIVE_NAMES
from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError

_NO_SECTION = ("model_type", "model_attributes_type", "dict_type")
"""pydantic's names for a value that stands in the place of a section."""


def parse_recipe(settings: Mapping[str, Any], source: str) -> Recipe:
    """Validate settings as a recipe.

    Args:
        settings: nested settings, as read from YAML.
        source: what to call them in messages, e.g. the file's name.

    Raises:
        UserError: unknown or out-of-range settings: every one with its field, the reason and the nearest valid name.
    """
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        problems = [_sentence(dict(problem)) for problem in error.errors()]
        raise UserError("\n".join(f"{source}: {problem}" for problem in problems)) from None


def _sentence(problem: dict[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    field = ".".join(_without_tags(location))
    if problem["type"] == "extra_forbidden":
        names = valid_names(location[:-1])
        near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.4)
        whole = ".".join(_without_tags(location[:-1]) + near)
        hint = f"did you mean {whole}?" if near else f"valid: {', '.join(names)}."
        return f"unknown setting {field}; {hint}"
    if problem["type"] == "missing":
        return f"setting {field} is required and missing."
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        if location == ["objective"]:
            return _unknown_objective(problem["input"])
        return f"{field}.kind must be one of {', '.join(_kinds(location))}."
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in _NO_SECTION:
        message = f"it is a section; write {field}.setting=value"
    message = message[0].lower() + message[1:]
    if problem["type"] == "value_error":
        return f"{field}: {message}." if field else f"{message}."
    return f"{field}={problem['input']!r} is refused: {message}."


def _unknown_objective(settings: Any) -> str:
    name = settings.get("name") if isinstance(settings, Mapping) else settings
    near = difflib.get_close_matches(str(name), OBJECTIVE_NAMES, n=1, cutoff=0.4)
    meant = f"did you mean {near[0]}? " if near else ""
    return (
        f"objective.name={name!r} is no objective; {meant}There are {', '.join(OBJECTIVE_NAMES)}, or your own as "
        f"module:function."
    )


def valid_names(location: list[str]) -> list[str]:
    """The setting names that are valid below a dotted location, given as its parts.

    Of a section that has several kinds, the part that follows says which it is (as in pydantic's errors): its tag.
    """
    sections = _walk(location)[1]
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def _kinds(location: list[str]) -> list[str]:
    return [tag for section in _walk(location)[1] for tag in _tags(section)]


def _without_tags(location: list[str]) -> list[str]:
    """A location as users write it: pydantic's errors name the kind of a section among its parts."""
    return _walk(location)[0]


def _walk(location: list[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """Follow a location down from the recipe.

    Returns:
        Its parts without tags, and the sections that may stand there: several where the kind is open, none where the
        location is no section's.
    """
    sections: list[type[BaseModel]] = [Recipe]
    parts: list[str] = []
    is_named = False  # the next part is a user's own name: scorers.NAME
    for part in location:
        tagged = [section for section in sections if part in _tags(section)]
        if is_named:
            is_named = False
        elif tagged:
            sections = tagged
            continue
        else:
            annotations = [
                section.model_fields[part].annotation for section in sections if part in section.model_fields
            ]
            is_named = any(typing.get_origin(annotation) is dict for annotation in annotations)
            sections = [section for annotation in annotations for section in _sections_of(annotation)]
        parts.append(part)
    return parts, sections


def _tags(section: type[BaseModel]) -> tuple[str, ...]:
    if issubclass(section, ObjectiveBase):
        return (section.__name__,)
    field = section.model_fields.get("kind")
    return typing.get_args(field.annotation) if field else ()


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The section classes inside an annotation such as `Section | None` or `dict[str, Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in typing.get_args(annotation) for section in _sections_of(inner)]
