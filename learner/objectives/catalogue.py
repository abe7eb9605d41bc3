"""The objectives by the name that recipes use."""

from learner.objectives.brain import brain
from learner.objectives.values import Objective

OBJECTIVES: dict[str, Objective] = {"brain": brain}
