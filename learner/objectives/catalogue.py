"""The objectives by the name that recipes use."""

from brain_align.common.config.objective_sections import ObjectiveBase, OwnSection
from brain_align.common.entries import entries_of
from brain_align.learner import objectives
from brain_align.learner.objectives.objective import Objective
from brain_align.learner.objectives.own import load_own
from brain_align.learner.objectives.values import Definition

OBJECTIVES: dict[str, Definition] = {
    name: definition for table in entries_of(objectives, "OBJECTIVES") for name, definition in table.items()
}
"""The `OBJECTIVES` of all files of this folder: a new objective is a section class and one of these entries."""


def make_objective(settings: ObjectiveBase) -> Objective:
    """Return the objective that a recipe names.

    Raises:
        UserError: it is the user's own, and cannot be imported or does not return losses.
    """
    if isinstance(settings, OwnSection):
        return Objective(load_own(settings), settings)
    return Objective(OBJECTIVES[settings.name], settings)
