"""Output of libraries and services, which is kept from the user's terminal."""

import contextlib
import io
import logging
import os
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; without it, Ray warns
}

_log: Path | None = None


def quiet_libraries() -> None:
    """Keep what libraries print and log off the terminal; call it before they are imported.

    Environment variables that are set already stay as they are.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(handlers=[logging.NullHandler()])  # what they log is for the run's log file


def forgiving_output() -> None:
    """Have stdout and stderr escape what the terminal's encoding cannot show, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def log_here(path: Path) -> None:
    """Note the log file of this process, to which `keep_traceback` appends."""
    global _log
    _log = path


def keep_traceback(error: BaseException) -> Path | None:
    """Append an error's traceback to this process's log, or to a new file; returns that, or None if neither can be."""
    text = f"{datetime.now(UTC).isoformat(timespec='seconds')} {''.join(traceback.format_exception(error))}"
    if _log is not None and _appended(_log, text):
        return _log
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(prefix="brain-error-", suffix=".log")
        os.close(handle)
        if _appended(Path(name), text):
            return Path(name)
        os.unlink(name)
    return None


def _appended(path: Path, text: str) -> bool:
    try:
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(text)
    except OSError:
        return False
    return True


def redirect_output(path: Path) -> None:
    """Append everything that this process writes to stdout and stderr from now on to a file.

    It redirects the file descriptors, so that C++ libraries and child processes are covered, and replaces `sys.stdout`
    and `sys.stderr`, for which a Ray worker has objects of its own. Existing loggers keep their streams. The file's
    directory is created. Later calls may name another file. Where the file cannot be written, nothing changes: Ray's
    own log of the process has it then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        print(f"{path} cannot be written: {error}", file=sys.stderr)
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # Line-buffered, so that lines written before the process was killed are in the file.
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
