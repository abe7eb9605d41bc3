"""Where the chatter of a service goes: its own log file, not the user's terminal."""

import os
import sys
from pathlib import Path


def redirect_output(path: Path) -> None:
    """Append everything that this process writes to stdout and stderr from now on to a file.

    Works on the file descriptors, so that C++ libraries and child processes are caught too, and replaces
    `sys.stdout` and `sys.stderr`, which a Ray worker has replaced by objects of its own. Loggers made earlier
    keep the stream that they were given.

    Args:
        path: the log file; its directory is created. Later calls may name another one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # Line-buffered: what a process wrote before it was killed is in the file.
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
