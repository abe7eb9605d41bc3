"""A time limit for code that may not know of it: an error is raised in its midst."""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 1.0
"""Seconds until the error is raised again in a block that swallowed it, or that waits for its threads."""

_INTERRUPT = signal.SIGRTMAX
"""The signal that interrupts: not SIGALRM, with which users' code sets limits of its own."""

_TO_A_THREAD = 4  # SIGEV_THREAD_ID of Linux


class OverdueError(BaseException):
    """The time is up. Not an `Exception`, so that code that swallows those does not swallow this one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after this many seconds by raising an error inside it, and again every second afterwards.

    Python delivers the error to the main thread between two instructions, and interrupts sleeping and waiting there:
    endless loops, locks, sockets, regular expressions. The block cannot be interrupted in another thread, or inside
    native code that ignores signals; then only the limit on the whole call remains (`timeouts.lease`), after which the
    process is killed.

    Raises:
        OverdueError: the time was up, even if the block swallowed the error; its result must not be used.
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

    signal.signal(_INTERRUPT, overdue)  # it stays: without a handler, a signal that comes late would end the process
    timer = _Timer()
    timer.set(seconds, _AGAIN)
    try:
        yield
    finally:
        is_over = True
        timer.delete()
        if is_overdue:
            raise OverdueError


class _SignalEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("unused", ctypes.c_byte * 44),
    )


class _Timer:
    """A timer of POSIX, which sends `_INTERRUPT` to this thread.

    Python has only the one of SIGALRM. A thread that waits would not do: a regular expression lets no other thread run.
    """

    def __init__(self) -> None:
        event = _SignalEvent(None, _INTERRUPT, _TO_A_THREAD, threading.get_native_id())
        self._timer = ctypes.c_void_p()
        self._library = ctypes.CDLL(None, use_errno=True)
        failed = self._library.timer_create(1, ctypes.byref(event), ctypes.byref(self._timer))  # CLOCK_MONOTONIC
        if failed:
            raise OSError(ctypes.get_errno(), "no timer could be made")

    def set(self, seconds: float, again: float) -> None:
        """Send the signal in some seconds, and again and again in as many as `again`."""
        parts = [int(part) for one in (again, seconds) for part in (one // 1, one % 1 * 1e9 + 1)]
        self._library.timer_settime(self._timer, 0, (ctypes.c_long * 4)(*parts), None)

    def delete(self) -> None:
        """Send no more."""
        self._library.timer_delete(self._timer)
