"""What the learner says of a step: learner -> conductor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """The account of one step.

    Attributes:
        metrics: finite numbers, for STEPS and the metrics file.
        notes: sentences that the user should see at once.
    """

    metrics: dict[str, float]
    notes: list[str]
