"""Signals that ask this process to end: the user is told first, then it ends by an exception, which cleans up."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

RESUME = "run the same command again to resume"
SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_resumes = False


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal other than SIGINT; the user has been told already."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def end_by_exceptions(*, resumes: bool) -> None:
    """Have SIGTERM and SIGHUP raise `Terminated`; `resumes`: the command continues when it is run again."""
    global _resumes
    _resumes = resumes
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _raise)


@asynccontextmanager
async def asked_to_end() -> AsyncIterator[asyncio.Future[int]]:
    """Yield a future that the first of these signals sets, instead of raising; the next one raises.

    Only in the main thread, and where `end_by_exceptions` was called; elsewhere the future stays as it is.
    """
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[int] = loop.create_future()

    def answer(number: int) -> None:
        if not asked.done():
            asked.set_result(number)

    def ask(number: int, _frame: object) -> None:
        signal.signal(number, _raise)
        _tell(number)
        loop.call_soon_threadsafe(answer, number)

    ours = threading.current_thread() is threading.main_thread()
    taken = [number for number in SIGNALS if ours and signal.getsignal(number) is _raise]
    for number in taken:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number in taken:
            signal.signal(number, _raise)


def _raise(number: int, _frame: object) -> None:
    _tell(number)
    raise Terminated(number)


def _tell(number: int) -> None:
    """Write to stderr without Python's buffers, which the signal may have interrupted."""
    if sys.__stderr__ is None:  # it was closed: the descriptor may be another file's
        return
    ending = f": {RESUME}" if _resumes else ""
    with contextlib.suppress(OSError):  # the terminal is gone
        os.write(2, f"brain: Interrupted by {signal.Signals(number).name}{ending}.\n".encode())
