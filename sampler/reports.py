"""The reports of a sampler."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Heartbeat:
    """The state of a sampler's work.

    Attributes:
        running: outputs being sampled.
        waiting: outputs that wait for room in the engine.
        outputs: finished since the start.
        tokens: of these outputs.
        idle_seconds: time since the engine ended a step or received work; 0 while a version is brought in, which has a
            time limit of its own. Meaningful only while outputs are running.
    """

    running: int
    waiting: int
    outputs: int
    tokens: int
    idle_seconds: float
