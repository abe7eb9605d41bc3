"""Progress lines and seconds by stage of a world's making."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from brain_align.deploy.worlds.training import Progress


class Recorder:
    """Says what is going on, and remembers how long it took.

    Attributes:
        progress: takes one line of text.
        seconds: wall-clock time by stage.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the building."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
