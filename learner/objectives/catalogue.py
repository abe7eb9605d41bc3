"""The objectives by the name that recipes use."""

import importlib
import pkgutil
from collections.abc import Iterator

from brain_align.common.config.objective_sections import ObjectiveBase, OwnSection
from brain_align.learner import objectives
from brain_align.learner.objectives.objective import Objective
from brain_align.learner.objectives.own import load_own
from brain_align.learner.objectives.values import Definition


def _tables() -> Iterator[dict[str, Definition]]:
    """Yield the `OBJECTIVES` of all files of this folder that have one, so that a new file needs no entry here."""
    for found in pkgutil.iter_modules(objectives.__path__, f"{objectives.__name__}."):
        yield getattr(importlib.import_module(found.name), "OBJECTIVES", {})


OBJECTIVES = {name: definition for table in _tables() for name, definition in table.items()}


def make_objective(settings: ObjectiveBase) -> Objective:
    """Return the objective that a recipe names.

    Raises:
        UserError: it is the user's own, and cannot be imported or does not return losses.
    """
    if isinstance(settings, OwnSection):
        return Objective(load_own(settings), settings)
    return Objective(OBJECTIVES[settings.name], settings)
