"""How a command ends: every error as one sentence and an exit status, with the traceback in a file."""

import errno
import os
import select
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brain_align.common.durable import is_temporary
from brain_align.common.errors import PipelineError, TryAgainError, UserError, first_line
from brain_align.common.logs import keep_traceback
from brain_align.common.system.interruption import RESUME, Terminated

FAILED, REFUSED, TRY_AGAIN, INTERRUPTED, PIPE_CLOSED = 1, 2, 75, 130, 141  # 75: EX_TEMPFAIL of sysexits.h

_FULL = "Free some space there"
_PLACE = "Check that the place exists and is mounted here"
_RIGHTS = "Give this user the right to write there, or choose another place"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "Free some space there, or have the quota raised",
    errno.EROFS: "Mount it writable, or choose another place",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EMFILE: "Raise the limit on open files (ulimit -n 65536)",
    errno.ENFILE: "The machine's limit on open files is reached: raise fs.file-max, or end other programs",
    errno.ENOENT: _PLACE,
    errno.ENOTDIR: _PLACE,
    errno.ESTALE: _PLACE,
    errno.ENODEV: _PLACE,
    errno.ENOTCONN: _PLACE,
    errno.EIO: "Check the disk or the file server",
    errno.EFBIG: "Choose a file system, or a limit (ulimit -f), that allows files of this size",
    errno.ENOMEM: "Free some memory, or use a machine with more",
    errno.ENAMETOOLONG: "Choose a shorter path",
}
_FOR_THE_USER = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR})


class _OutputUnreadError(Exception):
    """The reader of stdout is gone."""


@dataclass(frozen=True)
class Outcome:
    """A message for the user, and the exit status."""

    message: str | None
    status: int


def outcome(error: BaseException, *, resumes: bool) -> Outcome:
    """Return what to say about the error that has ended a command; raise a SystemExit that says everything itself.

    `resumes`: the command continues where it stopped when it is run again.
    """
    error = _most_telling(error)
    if isinstance(error, _OutputUnreadError | KeyboardInterrupt):
        return _interrupted(error, resumes)
    if isinstance(error, UserError):
        return Outcome(str(error), TRY_AGAIN if isinstance(error, TryAgainError) else REFUSED)
    if isinstance(error, PipelineError):
        return Outcome(f"{error}{_kept(str(error))}" if resumes else str(error), FAILED)
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error, error.errno, resumes)
    if isinstance(error, Exception):
        what = "There is not enough memory" if isinstance(error, MemoryError) else f"Unexpected {type(error).__name__}"
        told = f"{what}: {first_line(error)}" if str(error) else what
        return Outcome(f"{told}{_details(error)}", FAILED)
    raise error


def close_output() -> None:
    """Keep the interpreter from complaining, at its end, about output that cannot be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def _most_telling(error: BaseException) -> BaseException:
    """Return one error of nested groups: the user's interruption, else what has a sentence, else the first."""
    found = list(_single(error))
    for kind in (KeyboardInterrupt, UserError, PipelineError):
        for one in found:
            if isinstance(one, kind):
                return one
    first = found[0]
    if isinstance(first, SystemExit) and isinstance(first.__context__, BrokenPipeError):  # rich's way to end
        return _OutputUnreadError()
    return _OutputUnreadError() if isinstance(first, BrokenPipeError) and _nobody_reads() else first


def _single(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _single(one)
    else:
        yield error


def _kept(told: str) -> str:
    again = "" if "the same command again" in told else f": {RESUME}"  # it says already what to do before
    return f"\nNothing that was committed is lost{again}."


def _interrupted(error: BaseException, resumes: bool) -> Outcome:
    if isinstance(error, Terminated):
        return Outcome(None, 128 + error.number)
    if isinstance(error, KeyboardInterrupt):
        return Outcome(f"Interrupted: {RESUME}." if resumes else "Interrupted.", INTERRUPTED)
    return Outcome(f"Nothing reads this command's output any more: {RESUME}." if resumes else None, PIPE_CLOSED)


def _of_the_system(error: OSError, number: int, resumes: bool) -> Outcome:
    """Return a sentence on a file, or another part of the system, that failed where no command expects it."""
    file = error.filename if error.filename is not None else error.filename2
    if isinstance(file, str | bytes | os.PathLike) and is_temporary(path := Path(os.fsdecode(file))):
        file = path.parent  # a name that the user has never seen
    place = "" if file is None or isinstance(file, int) else f"{os.fsdecode(file)}: "
    advice = f" {_ADVICE[number]}, and {RESUME if resumes else 'run it again'}." if number in _ADVICE else ""
    what = f"{place}{error.strerror or os.strerror(number)} (errno {number})."
    return Outcome(f"{what}{advice}{_details(error, start=' The')}", REFUSED if number in _FOR_THE_USER else FAILED)


def _details(error: BaseException, *, start: str = "; the") -> str:
    kept = keep_traceback(error)
    if kept is not None:
        return f"{start} traceback is in {kept}."
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{start} error was raised at {last[0].filename}:{last[0].lineno}." if last else "."


def _nobody_reads() -> bool:
    """Return whether the reader of stdout is gone: a pipe of another kind may have broken as well."""
    if sys.stdout is None:
        return False
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
