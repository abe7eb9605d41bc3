"""The learner's report on a step: learner -> conductor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """The report on one step.

    Attributes:
        metrics: finite numbers, for STEPS and the metrics file.
        notes: sentences for the user to see at once.
    """

    metrics: dict[str, float]
    notes: list[str]
