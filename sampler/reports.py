"""What a sampler says of itself to whoever asks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Heartbeat:
    """Whether a sampler is getting on.

    Attributes:
        running: outputs that are being sampled.
        waiting: outputs that wait for room in the engine.
        outputs: that have been finished since the start.
        tokens: that these have.
        idle_seconds: since the engine ended a step or was given something to do; 0 while a version is brought in, which
            has a time limit of its own. Means something only while outputs are running.
    """

    running: int
    waiting: int
    outputs: int
    tokens: int
    idle_seconds: float


@dataclass(frozen=True)
class Loaded:
    """A version that a sampler holds.

    Attributes:
        version: of the proposal.
        digest: of its files.
        gap: nats a token between the learner's log-probabilities of the probe and the engine's; None without a probe.
        seconds: that loading and probing took when it was brought in.
    """

    version: int
    digest: str
    gap: float | None
    seconds: float
