"""The last error in a log file, for sentences about what became of the process that wrote it."""

import os
import re
from pathlib import Path

_TAIL = 2**18  # bytes that are looked at
_LONGEST = 300  # characters
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"^(?:\([^()]*\)\s+)?(?:(?:ERROR|CRITICAL|WARNING)\s+\S+\s+\S+\s+\[[^\]]*\]\s*)?")
_ERROR = re.compile(r"^(?:\w+\.)*([A-Z]\w*(?:Error|Exception))(?:: (.*))?$")
_FATAL = re.compile(r"^(?:Fatal Python error: |terminate called |Segmentation fault|Bus error|Illegal instruction).*")
_CONSEQUENCES = frozenset({"EngineDeadError", "EngineLostError", "CancelledError", "ConnectionResetError", "EOFError"})
"""Errors that only say that another process has failed."""


def log_size(path: str | Path) -> int:
    """Return the size of a log file, 0 where there is none: `last_error` looks at what is written after it."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def last_error(path: str | Path, start: int = 0) -> str | None:
    """Return the last error that a log file names after `start`, as one line without Python's traceback, if any."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - _TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next(filter(None, map(_error, reversed(lines))), None)


def _error(line: str) -> str | None:
    line = _PREFIX.sub("", _COLOURS.sub("", line)).rstrip()
    found = _ERROR.match(line)
    if found is None:
        return line[:_LONGEST] if _FATAL.match(line) else None
    name, text = found[1], found[2] or ""
    if name in _CONSEQUENCES or "See root cause above" in text:
        return None
    return (f"{name}: {text}" if text else name)[:_LONGEST]
