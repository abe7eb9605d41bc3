"""How far a run is: a part of its status, and what its live line shows."""

from pydantic import BaseModel, ConfigDict


class StatusPart(BaseModel):
    """A part of a status: immutable."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer version may say more


class Progress(StatusPart):
    """How far training is. Rates are output tokens per second over the last minute.

    Attributes:
        round, rounds, step, steps, version: where training is, and its ends.
        sampled, scored, trained: groups so far.
        sampled_rate, scored_rate, trained_rate: tokens/s.
        staleness: versions between the oldest proposal of the last step's groups and the newest.
        left_seconds: to the end of training at the present pace; None before the first step.
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
