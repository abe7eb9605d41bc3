"""A limit on the time that somebody else's code may take."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 1.0
"""Seconds after which a block that has swallowed the error, or waits for its threads, gets it again."""


class OverdueError(BaseException):
    """The time is up. No `Exception`, so that code which swallows those does not swallow this one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End the block when it has taken so long, by an error raised wherever it is, and again every second from then on.

    Python delivers it to the main thread between two instructions, and interrupts what sleeps or waits there: a loop
    without an end, a lock, a socket, a regular expression. In another thread, and inside a library's native code that
    does not look at signals, the block runs on; what is then left is the limit on the call as a whole
    (`timeouts.lease`), after which the process is ended. SIGALRM is in use meanwhile: a block that sets its own has no
    limit.

    Raises:
        OverdueError: the time was up, whatever the block made of that: what it then returned is none of its values.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    is_overdue = is_over = False

    def overdue(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_overdue
        if not is_over:
            is_overdue = True
            raise OverdueError

    before = signal.signal(signal.SIGALRM, overdue)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if is_overdue:
            raise OverdueError
