"""A tracker in a thread of its own: a run never waits for it, and never ends because of it."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping

from brain_align.common.errors import first_line
from brain_align.deploy.run.trackers.tracker_protocol import MetricsTracker

_MOST_WAITING = 10_000  # records; further ones are dropped while a tracker is away
_PAUSE = 30.0  # seconds until a record that failed is tried again
_LAST = 60.0  # seconds for what is left when the run ends
_LOG = logging.getLogger(__name__)

Record = tuple[str, int, dict[str, float]]


class Background:
    """Opens a tracker, and hands it one record after the other; what fails is tried again, and told once.

    Args:
        name: of the tracker, as in the recipe.
        open_: makes it; may raise anything.
        tell: shows a sentence to the user; called in the tracker's thread.
        pause, last: seconds before what failed is tried again, and for the rest when the run ends.
    """

    def __init__(
        self,
        name: str,
        open_: Callable[[], MetricsTracker],
        tell: Callable[[str], None],
        *,
        pause: float = _PAUSE,
        last: float = _LAST,
    ) -> None:
        self._name = name
        self._open = open_
        self._tell = tell
        self._pause, self._last = pause, last
        self._waiting: queue.Queue[Record | None] = queue.Queue(_MOST_WAITING)
        self._closing = threading.Event()
        self._told = False
        self._lost = 0
        self._tracker: MetricsTracker | None = None
        self._thread = threading.Thread(target=self._work, name=f"tracking.{name}", daemon=True)
        self._thread.start()

    def log(self, kind: str, number: int, figures: Mapping[str, float]) -> None:
        """Have figures recorded; returns at once."""
        try:
            self._waiting.put_nowait((kind, number, dict(figures)))
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Give the tracker some time for what is left, and end it."""
        self._closing.set()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            self._lost += 1
        self._thread.join(self._last)
        if self._thread.is_alive():
            self._warn(f"it did not finish within {self._last:g} s")
        if self._lost:
            self._tell(
                f"WARNING: tracking.{self._name}: {self._lost} records were not sent; metrics.jsonl has all of them."
            )

    def _work(self) -> None:
        self._opened()
        while (record := self._waiting.get()) is not None:
            if not self._deliver(record):
                self._lost += 1 + sum(one is not None for one in self._waiting.queue)
                return
        try:
            if self._tracker is not None:
                self._tracker.close()
        except Exception as error:  # noqa: BLE001 - a tracker may raise anything, and the run does not depend on it
            self._failed(error)

    def _opened(self) -> MetricsTracker | None:
        if self._tracker is None:
            try:
                self._tracker = self._open()
            except Exception as error:  # noqa: BLE001 - see above
                self._failed(error)
        return self._tracker

    def _deliver(self, record: Record) -> bool:
        """Record it, however often that takes; false where the run ends before."""
        while True:
            if (tracker := self._opened()) is not None:
                try:
                    tracker.log(*record)
                    return True
                except Exception as error:  # noqa: BLE001 - see above
                    self._failed(error)
            if self._closing.wait(self._pause):
                return False

    def _failed(self, error: Exception) -> None:
        _LOG.warning("tracking.%s failed", self._name, exc_info=error)
        self._warn(first_line(error))

    def _warn(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._tell(
                f"WARNING: tracking.{self._name}: {why.rstrip('.')}. The run goes on without it, and tries it again; "
                f"metrics.jsonl has all metrics."
            )
