"""What a sampler says of itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pulse:
    """Whether a sampler is getting on.

    Attributes:
        running: outputs that are being sampled.
        waiting: outputs that wait for room in the engine.
        outputs: that have been finished since the start.
        tokens: that these have.
        idle_seconds: since the engine ended its last step; means something only while outputs are running.
    """

    running: int
    waiting: int
    outputs: int
    tokens: int
    idle_seconds: float
