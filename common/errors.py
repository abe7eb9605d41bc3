"""The errors that users see: one clear sentence each, without a traceback."""

import errno
import getpass
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SECRET_VARIABLE = re.compile(r"(?i)token|secret|passw|api_?key|access_?key|credential")
_AUTHORIZATION = re.compile(r"(?i)\b(bearer|basic)([ \t]+)[^\s'\",;]+")
_SHORTEST_SECRET = 8


def without_secrets(text: str) -> str:
    """Return a text without the values of environment variables that hold secrets, and without authorizations.

    Libraries quote what they were given: a header that is not valid, a request that failed, a login page.
    """
    for name, value in os.environ.items():
        secret = value.strip()
        if len(secret) >= _SHORTEST_SECRET and secret in text and _SECRET_VARIABLE.search(name) and secret[0] != "/":
            text = text.replace(secret, f"${name}")
    return _AUTHORIZATION.sub(r"\1\2…", text)


_HEADING = re.compile(r".*:$|\d+ validation errors? for |\d+ (Client|Server) Error")
"""The beginning of a line that says nothing without the line after it."""

_LONGEST_LINE = 600


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message that says something, without the pages that some append.

    Headings (torch's "Error(s) in loading state_dict for …:", a hub's "404 Client Error …") are followed by the lines
    that they announce; an error without a message is named by its type.
    """
    lines = [line for line in map(str.strip, str(error).splitlines()) if re.search(r"\w", line)]
    if lines and lines[0].startswith("Traceback "):  # a process's, passed on as text: its end is what was raised
        lines = lines[-1:]
    told = ""
    for line in lines:
        told = f"{told} {line}".strip()
        if not _HEADING.match(line):
            break
    if len(told) > _LONGEST_LINE:
        told = told[:_LONGEST_LINE] + " …"
    return without_secrets(told) or type(error).__name__


def listed(items: Sequence[str], most: int = 3) -> str:
    """Return the first items of a list as text, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


_OF_THE_DISK = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENODEV, errno.EHOSTDOWN}
)


def unreadable(path: Path, error: OSError, root: Path, gone: str) -> str:
    """Return why a file that should be there cannot be read by this process, and what to do about it.

    Only a file that is not in its folder is lost, or was never there. Others may be in order, and must not be restored.

    Args:
        path: the file.
        error: what reading it raised.
        root: the folder that every node must see, which exists if this one does.
        gone: what to say of a file that is not there, though `root` is.
    """
    node = socket.gethostname()
    if isinstance(error, PermissionError):
        return (
            f"user {_user()} on node {node} may not read {error.filename or path} ({error.strerror}); give that user "
            f"read access (chmod -R a+rX {root}), or run as the user who wrote it."
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if root.is_dir():
            return gone
        return (
            f"node {node} does not see {root}; mount the file system that holds it on that node, in the same place, or "
            f"set run.dir to a place that every node sees."
        )
    return (
        f"{error.filename or path} cannot be read on node {node} ({error.strerror or error}); check the disk or the "
        f"file server, and run the same command again."
    )


def refuse_unreadable(path: Path, error: BaseException) -> None:
    """Raise a UserError if a file was not read because of a right, disk or file server: it is not known to be damaged.

    Do nothing for other errors.
    """
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno in _OF_THE_DISK):
        raise UserError(f"{path} is not read: {unreadable(path, error, path, '')}") from error


def _user() -> str:
    try:
        return getpass.getuser() if os.geteuid() == os.getuid() else str(os.geteuid())
    except (KeyError, OSError):  # a user without a name, as in many containers
        return str(os.geteuid())


class _SentenceError(Exception):
    """An error whose message is for users, and for files: it has no secrets."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_secrets(one) if isinstance(one, str) else one for one in args))


class UserError(_SentenceError):
    """A mistake that the user can fix.

    The message is one sentence (or a short list) that states the mistake, its place and the remedy. The command line
    prints only the message and exits with status 2.
    """


class TryAgainError(UserError):
    """Something that is needed is in use, or away, and may be there later; the exit status is 75 (EX_TEMPFAIL)."""


class DamagedPartError(UserError):
    """A file of the sample store is truncated, altered or foreign."""


class PipelineError(_SentenceError):
    """A part of the running pipeline failed; the message names the part, its task and the log file to read.

    The command line prints it and exits with status 1; the run can be resumed.
    """


class LearnerOutOfMemoryError(PipelineError):
    """A pass of the learner does not fit into memory, and this process cannot repeat it with the `smaller` budget."""

    def __init__(self, message: str, smaller: int) -> None:
        super().__init__(message, smaller)  # both, so that Ray can pickle it
        self.smaller = smaller

    def __str__(self) -> str:
        return str(self.args[0])


class ScorerAwayError(PipelineError):
    """A scorer gave no values, and the texts are not known to be the cause: its service is away, its function fails.

    The caller waits and asks again, alone: only then is it known whether a text has no value. `rows` are the SCORES
    rows of all groups of the call, as far as they are known, if there are any; those of the groups in `away` lack
    values for this reason, and are not to be kept before that is known.
    """

    def __init__(self, message: str, rows: Any = None, away: frozenset[str] = frozenset()) -> None:
        super().__init__(message, rows, away)  # all, so that Ray can pickle it
        self.rows = rows
        self.away = away

    def __str__(self) -> str:
        return str(self.args[0])


class EngineLostError(PipelineError):
    """A service's engine has died; the service cannot continue and must be restarted."""


class EngineUnfitError(EngineLostError):
    """A service's engine has died before it did anything for anybody: no request can be at fault."""


class NotSharedError(PipelineError):
    """A node does not see what the run has written: the service's place is at fault, others may work."""


class DeliveryError(PipelineError):
    """A version did not get into an engine, for a reason that may pass: memory, a device, a file system, time.

    The service must be restarted; its request is not to blame.
    """


def first_failure(failures: ExceptionGroup[Exception]) -> Exception:
    """Return the first single exception in nested groups, which failed before the others were cancelled."""
    failure: Exception = failures
    while isinstance(failure, ExceptionGroup):
        failure = failure.exceptions[0]
    return failure


class Problems:
    """A collector of errors, so that all of them are reported together."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the block's `UserError` instead of raising it."""
        try:
            yield
        except UserError as error:
            self._found.append(str(error))

    def raise_any(self) -> None:
        """Raise all that was noted, one sentence per line, each once."""
        if self._found:
            raise UserError("\n".join(dict.fromkeys(self._found)))
