"""Amounts per second over the last minute."""

import threading
import time
from collections import deque

_WINDOW = 60  # seconds


class Rate:
    """Counts amounts by the second; safe to read from the thread that draws. Its cost does not depend on the counts."""

    def __init__(self) -> None:
        self._seconds: deque[list[float]] = deque()  # [second, amount], oldest first
        self._lock = threading.Lock()

    def add(self, amount: float) -> None:
        """Count `amount` as done now."""
        second = int(time.monotonic())
        with self._lock:
            if self._seconds and self._seconds[-1][0] == second:
                self._seconds[-1][1] += amount
            else:
                self._seconds.append([second, amount])
                self._forget(second)

    def per_second(self) -> float:
        """The rate over the window, or since the first event if that is shorter ago."""
        now = time.monotonic()
        with self._lock:
            self._forget(now)
            if not self._seconds:
                return 0.0
            return sum(amount for _, amount in self._seconds) / max(now - self._seconds[0][0], 1.0)

    def _forget(self, now: float) -> None:
        while self._seconds and now - self._seconds[0][0] > _WINDOW:
            self._seconds.popleft()
