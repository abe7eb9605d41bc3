"""The learner's report on a step: learner -> conductor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """The report on one step."""

    metrics: dict[str, float]  # finite, for STEPS and the metrics file
    notes: list[str]  # sentences for the user to see at once
