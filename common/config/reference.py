"""All settings of a recipe, as a list read off the section classes: the source of the settings reference."""

import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from brain_align.common.config.objective_sections import ObjectiveBase
from brain_align.common.config.objectives import SECTIONS
from brain_align.common.config.recipe import Recipe
from brain_align.common.config.validation import sections_of

_SELECTORS = (".kind", ".name")
_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥", "pattern": "pattern"}


@dataclass(frozen=True)
class Setting:
    """One setting."""

    name: str  # dotted, as in an override; NAME stands for a name of the user's choice
    type: str  # in words, e.g. "integer or null", or the values of a choice
    default: str  # as YAML; "required" if there is none
    bounds: str  # of its values, e.g. "≥ 1"; empty if there are none
    description: str  # one sentence
    kinds: tuple[str, ...] = ()  # the kinds of scorer, or objectives, that have it; empty if it depends on neither


@dataclass(frozen=True)
class SectionReference:
    """A section with its own settings, without those of sections below it."""

    name: str  # dotted; empty for the recipe itself
    kinds: tuple[str, ...]  # as for `Setting`
    summary: str  # the first paragraph of its docstring
    example: str  # YAML, a part of a recipe
    settings: tuple[Setting, ...]


def all_sections() -> Iterator[SectionReference]:
    """Yield all sections of a recipe in its order, and each kind of scorer and objective on its own."""
    yield from _sections("", Recipe)


def _sections(name: str, section: type[BaseModel]) -> Iterator[SectionReference]:
    below = {field: sections_of(info.annotation) for field, info in section.model_fields.items()}
    yield _reference(name, section, [field for field, sections in below.items() if not sections])
    for field, sections in below.items():
        named = typing.get_origin(section.model_fields[field].annotation) is dict
        prefix = ".".join(filter(None, (name, field, "NAME" if named else "")))
        if len(sections) == 1:
            yield from _sections(prefix, sections[0])
        elif sections:
            yield from _kinds(prefix, sections)


def _kinds(name: str, sections: list[type[BaseModel]]) -> Iterator[SectionReference]:
    """Yield the settings that all kinds of a section share, and then what each kind adds or changes."""
    base = next(parent for parent in _models(sections[0]) if all(issubclass(other, parent) for other in sections))
    kinds = {section: _names(section) for section in sections}
    shared = _reference(name, base, list(base.model_fields))
    every = _either([kind for names in kinds.values() for kind in names])
    settings = (replace(one, type=every) if one.name.endswith(_SELECTORS) else one for one in shared.settings)
    yield replace(shared, settings=tuple(settings))
    for section, names in kinds.items():
        own = [
            field
            for field, info in section.model_fields.items()
            if field not in base.model_fields or _facts(info) != _facts(base.model_fields[field])
            if typing.get_args(info.annotation) != names
        ]
        yield _reference(name, section, own, names)


def _names(section: type[BaseModel]) -> tuple[str, ...]:
    """Return the kinds of scorer, or the objectives, that a section class is for."""
    if issubclass(section, ObjectiveBase):
        return tuple(name for name, other in SECTIONS.items() if other is section) or ("module:function",)
    return typing.get_args(section.model_fields["kind"].annotation)


def _reference(name: str, section: type[BaseModel], fields: list[str], kinds: tuple[str, ...] = ()) -> SectionReference:
    summary, _, example = (inspect.getdoc(section) or "").partition("\n\nExample:\n")
    summary = " ".join(summary.partition("\n\nAttributes:")[0].split())
    settings = [_setting(f"{name}.{field}".lstrip("."), section, field, kinds) for field in fields]
    return SectionReference(name, kinds, summary, textwrap.dedent(example), tuple(settings))


def _setting(name: str, section: type[BaseModel], field: str, kinds: tuple[str, ...]) -> Setting:
    inherited = [parent.model_fields[field] for parent in _models(section) if field in parent.model_fields]
    description = next((info.description for info in inherited if info.description), "")
    return Setting(name, *_facts(inherited[0]), description, kinds)


def _models(section: type[BaseModel]) -> list[type[BaseModel]]:
    return [parent for parent in section.__mro__ if issubclass(parent, BaseModel)]


def _facts(info: FieldInfo) -> tuple[str, str, str]:
    """Return a field's type, default and bounds."""
    default = "required" if info.is_required() else _default(info)
    return _type(info.annotation), default, _bounds(info.metadata)


def _default(info: FieldInfo) -> str:
    value = info.get_default()
    return value if isinstance(value, str) else json.dumps(TypeAdapter(Any).dump_python(value, mode="json"))


def _bounds(metadata: list[Any]) -> str:
    found = [(name, getattr(part, name, None)) for part in metadata for name in _BOUNDS]
    return ", ".join(f"{_BOUNDS[name]} {bound}" for name, bound in found if bound is not None)


def _type(annotation: Any) -> str:
    """Return an annotation in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return _either([str(argument) for argument in arguments])
    if origin in (typing.Union, types.UnionType):
        return _either([_type(argument) for argument in arguments])
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"map to {_type(arguments[1])}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", types.NoneType: "null"}
    return names[annotation]


def _either(choice: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(choice[:-1]), choice[-1])))
