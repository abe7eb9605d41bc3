"""The methods of a comparison, and the recipe that trains one."""

import difflib
import typing
from dataclasses import dataclass
from typing import Any

from common.config.recipe import ObjectiveSection, Recipe
from common.config.validation import parse_recipe
from common.errors import UserError
from deploy.recipe_files import apply_override

OBJECTIVE_NAMES: tuple[str, ...] = typing.get_args(ObjectiveSection.model_fields["name"].annotation)


@dataclass(frozen=True)
class Method:
    """An objective, perhaps with settings of its own: `dpo-sft`, or `dpo-sft:beta=0.5`.

    Attributes:
        label: as it was asked for; names the method everywhere.
        objective: the recipe's `objective.name`.
        overrides: `setting=value` of the objective's section.
    """

    label: str
    objective: str
    overrides: tuple[str, ...] = ()


def parse_method(text: str) -> Method:
    """Read `NAME` or `NAME:setting=value:…`.

    Raises:
        UserError: there is no such objective (the nearest is named), or a setting has no `=`.
    """
    name, *overrides = text.strip().split(":")
    if name not in OBJECTIVE_NAMES:
        near = difflib.get_close_matches(name, OBJECTIVE_NAMES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(OBJECTIVE_NAMES)}."
        raise UserError(f"--objectives: unknown objective {name!r}; {hint}")
    strange = [override for override in overrides if "=" not in override]
    if strange:
        raise UserError(f"--objectives: {strange[0]!r} in {text!r} is no setting; write NAME:setting=value.")
    return Method(text.strip(), name, tuple(overrides))


def objective_settings(base: Recipe, method: Method) -> dict[str, Any]:
    """The settings of a method's `objective` section: the recipe's own where the method knows them, then its overrides.

    Raises:
        UserError: an override cannot be read.
    """
    settings = {**base.objective.model_dump(mode="json"), "name": method.objective}
    for override in method.overrides:
        apply_override(settings, override)
    return settings


def method_recipe(base: Recipe, method: Method, **sections: dict[str, Any] | int) -> Recipe:
    """The recipe that trains a method, and nothing but the method different from the base.

    Args:
        base: the recipe that is compared on.
        method: its objective.
        sections: settings that replace the base's, section by section (or a value such as `seed`).

    Raises:
        UserError: the recipe and the method's objective do not go together.
    """
    settings = base.model_dump(mode="json")
    settings["objective"] = objective_settings(base, method)
    for name, change in sections.items():
        settings[name] = {**settings[name], **change} if isinstance(change, dict) else change
    return parse_recipe(settings, f"objective {method.label}")


def is_offline(recipe: Recipe) -> bool:
    """Whether the method trains on groups from the prior alone."""
    return recipe.objective.name not in ("brain", "brain-no-baseline")
