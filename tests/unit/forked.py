"""Tests in a process of their own, of code that makes processes."""

import contextlib
import os
import signal
import time
from pathlib import Path

MOST_SECONDS = 20


def in_child(check):
    """Run a check in a process of its own, with all that it makes in one session, which is ended; return its status."""
    child = os.fork()
    if not child:
        status = 99
        try:
            os.setsid()
            status = check() or 0
        finally:
            os._exit(status)
    until = time.monotonic() + MOST_SECONDS
    ended, status, were_left = 0, 0, False
    while not ended and time.monotonic() < until:
        time.sleep(0.01)
        ended, status = os.waitpid(child, os.WNOHANG)
    until = time.monotonic() + 2
    while (left := _of_session(child)) and time.monotonic() < until:
        time.sleep(0.02)
    while left:  # a fork bomb may need several rounds
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        left, were_left = _of_session(child), True
    assert ended and not were_left, "processes were left"
    return os.waitstatus_to_exitcode(status)


def _of_session(session):
    """Return the processes of a session; not those that have ended, which nobody may have waited for."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) == session and ") Z " not in (entry / "stat").read_text():
                found.append(int(entry.name))
    return found
