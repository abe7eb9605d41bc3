"""Output of libraries and services, which is kept from the user's terminal."""

import logging
import os
import sys
from pathlib import Path

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; without it, Ray warns
}


def quiet_libraries() -> None:
    """Keep what libraries print and log off the terminal; call it before they are imported.

    Environment variables that are set already stay as they are.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(handlers=[logging.NullHandler()])  # what they log is for the run's log file


def redirect_output(path: Path) -> None:
    """Append everything that this process writes to stdout and stderr from now on to a file.

    It redirects the file descriptors, so that C++ libraries and child processes are covered, and replaces `sys.stdout`
    and `sys.stderr`, for which a Ray worker has objects of its own. Existing loggers keep their streams. The file's
    directory is created. Later calls may name another file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # Line-buffered, so that lines written before the process was killed are in the file.
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
