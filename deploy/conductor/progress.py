"""The progress of a run, which its status and its live line show."""

from pydantic import BaseModel, ConfigDict


class StatusPart(BaseModel):
    """An immutable part of a status."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer version may have more fields


class Progress(StatusPart):
    """The progress of training. Rates are output tokens per second over the last minute.

    Attributes:
        round, rounds, step, steps, version: the position of training, and its end.
        sampled, scored, trained: groups so far.
        sampled_rate, scored_rate, trained_rate: tokens/s.
        staleness: versions between the oldest proposal of the last step's groups and the newest.
        left_seconds: remaining training time at the present pace; None before the first step.
        reward, kl, ess: of the last step.
    """

    round: int
    rounds: int
    step: int
    steps: int
    version: int
    sampled: int
    scored: int
    trained: int
    sampled_rate: float
    scored_rate: float
    trained_rate: float
    staleness: int | None
    left_seconds: float | None
    reward: float | None
    kl: float | None
    ess: float | None
