"""When vLLM's engine last made a step: the sign of life of a sampler that is at work."""

import time
from collections.abc import Callable


class StepLog:
    """What AsyncLLM tells of each step, in the place of its own statistics, which cost more than they tell.

    Attributes:
        newest: when the newest step ended (`time.monotonic`).
        watch: is given that time of every step.
    """

    def __init__(self) -> None:
        self.newest = time.monotonic()
        self.watch: Callable[[float], None] = lambda _ended: None

    def record(self, **_statistics: object) -> None:
        """AsyncLLM calls this."""
        self.newest = time.monotonic()
        self.watch(self.newest)
