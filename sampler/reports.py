"""The reports of a sampler."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Heartbeat:
    """The state of a sampler's work.

    `idle_seconds` is the time since the engine ended a step or received work, and 0 while a version is brought in,
    which has a time limit of its own. It means something only while outputs are running.
    """

    running: int  # outputs being sampled
    waiting: int  # outputs that wait for room in the engine
    outputs: int  # finished since the start
    tokens: int  # of these outputs
    idle_seconds: float
