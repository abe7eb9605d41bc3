"""The methods of a comparison, and the recipe that trains one."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from brain_align.common.config.objective_sections import BrainSection
from brain_align.common.config.objectives import OBJECTIVE_NAMES, ObjectiveSection
from brain_align.common.config.recipe import Recipe
from brain_align.common.config.validation import parse_recipe
from brain_align.common.errors import UserError
from brain_align.common.schemas import HUMAN
from brain_align.deploy.run.recipe_files import apply_override


@dataclass(frozen=True)
class Method:
    """An objective, optionally with settings of its own: `dpo-sft`, or `dpo-sft:beta=0.5`."""

    label: str  # as written in the request; the method's name everywhere
    objective: str  # the recipe's `objective.name`
    overrides: tuple[str, ...] = ()  # `setting=value` of the objective's section

    @property
    def slug(self) -> str:
        """The label as part of directory names."""
        return re.sub(r"[^A-Za-z0-9.+=-]+", "_", self.label)


def parse_method(text: str) -> Method:
    """Read `NAME` or `NAME:setting=value:…`; NAME may be an own loss, `module:function`.

    Raises:
        UserError: there is no such objective (the nearest is named), or a setting has no `=`, is given twice, or is
            the objective's name.
    """
    name, *overrides = text.strip().split(":")
    if name not in OBJECTIVE_NAMES and overrides and "=" not in overrides[0]:
        name, *overrides = f"{name}:{overrides[0]}", *overrides[1:]
    elif name not in OBJECTIVE_NAMES:
        near = difflib.get_close_matches(name, OBJECTIVE_NAMES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"available: {', '.join(OBJECTIVE_NAMES)}."
        raise UserError(f"--objectives: unknown objective {name!r}; {hint}")
    _check_overrides(text.strip(), overrides)
    return Method(text.strip(), name, tuple(overrides))


def _check_overrides(text: str, overrides: Sequence[str]) -> None:
    strange = [override for override in overrides if "=" not in override]
    if strange:
        raise UserError(f"--objectives: {strange[0]!r} in {text!r} is not a setting; write NAME:setting=value.")
    given = [tuple(part.strip() for part in override.split("=", 1)) for override in overrides]
    settings = [setting for setting, _ in given]
    for setting, value in given:
        if setting == "name":
            raise UserError(f"--objectives: {text!r} renames its objective; write {value} in its place.")
        if settings.count(setting) > 1:
            raise UserError(f"--objectives: {text!r} sets {setting} twice; write it once.")


def objective_settings(base: Recipe, method: Method) -> dict[str, Any]:
    """Return the settings of a method's `objective` section: those that all methods share, then its overrides.

    Shared are the recipe's reward, reward transform, γ and goodness model, unless the method does not have the setting
    or has a default of its own for it (such as `dpo`, whose reward is human preferences). Settings of one method, such
    as β, are taken from the recipe for that method only.

    Raises:
        UserError: an override cannot be read.
    """
    given = base.objective.model_dump(mode="json", include=base.objective.model_fields_set)
    defaults = TypeAdapter(ObjectiveSection).validate_python({"name": method.objective})
    own, everybody = defaults.model_dump(mode="json"), BrainSection().model_dump(mode="json")
    if base.objective.name != method.objective:
        given = {name: value for name, value in given.items() if name in own and own[name] == everybody.get(name)}
    settings = {**given, "name": method.objective}
    for override in method.overrides:
        apply_override(settings, override)
    return settings


def refuse_equal(base: Recipe, methods: Sequence[Method]) -> None:
    """Raise UserError if two methods are the same objective with the same settings, however these are written."""
    labels: dict[str, str] = {}
    for method in methods:
        section = TypeAdapter(ObjectiveSection).validate_python(objective_settings(base, method))
        twin = labels.setdefault(section.model_dump_json(), method.label)
        if twin != method.label:
            raise UserError(
                f"--objectives: {twin} and {method.label} are the same objective with the same settings; name only one "
                f"of them, the one of an earlier start if there was one."
            )


def trains_on_pairs(settings: dict[str, Any]) -> bool:
    """Return whether an objective's settings make human preferences the reward."""
    own = TypeAdapter(ObjectiveSection).validate_python({"name": settings["name"]})
    return settings.get("reward", own.reward) == HUMAN


def any_on_pairs(base: Recipe, methods: Sequence[Method]) -> bool:
    """Return whether any of the methods trains on human preference pairs, and so needs a store of these."""
    return any(trains_on_pairs(objective_settings(base, method)) for method in methods)


def method_recipe(
    base: Recipe, method: Method, *, pairs: str | None = None, **sections: dict[str, Any] | int
) -> Recipe:
    """Return the recipe that trains a method; apart from `sections`, only the objective differs from the base.

    `sections` are settings that replace the base's, by section (or a value such as `seed`), and `pairs` a store of
    human pairs, for a method that trains on these.

    Raises:
        UserError: the recipe and the method's objective are incompatible, or the method lacks its pairs.
    """
    settings = base.model_dump(mode="json")
    settings["objective"] = objective_settings(base, method)
    if trains_on_pairs(settings["objective"]):
        if pairs is None:
            raise UserError(
                f"--objectives {method.label} trains on human preference pairs; create a store from a file with the "
                f"columns prompt, chosen and rejected (brain store import-pairs) and name it with --pairs, or choose "
                f"dpo-sft, whose pairs the reward ranks."
            )
        settings["sampler"]["replicas"], settings["store"]["uri"] = 0, pairs  # the run samples no groups of its own
        settings["logprobs"]["proposal"] = "sampler"  # nobody has sampled human texts from a proposal
    for name, change in sections.items():
        settings[name] = {**settings[name], **change} if isinstance(change, dict) else change
    return parse_recipe(settings, f"objective {method.label}")
