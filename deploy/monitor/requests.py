"""Requests to a live run, as small files in its directory: they can be made wherever that is visible.

<run>/control/requests/<id>.json    a request, until the run takes it
<run>/control/answers/<id>.json     its answer, until it has been read
"""

import os
import stat
import time
import uuid
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from brain_align.common.durable import is_temporary, time_at, write_file
from brain_align.common.errors import UserError
from brain_align.deploy.run.directory import RunDirectory

_LARGEST = 1 << 16  # bytes of a request or an answer
_LOOK_EVERY = 0.1  # seconds
_FORGOTTEN_AFTER = 3600.0  # seconds, after which nobody will read an answer


class ScaleRequest(BaseModel):
    """Numbers of replicas by service; None: `sampler.autoscale` decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: dict[str, int | None]


class Answer(BaseModel):
    """The run's answer to a request: one line per service, or why it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: list[str] = []
    refusal: str | None = None


def ask(directory: RunDirectory, request: ScaleRequest, timeout: float) -> Answer:
    """Send a request to a live run, and return its answer.

    Raises:
        UserError: there was no answer in time; the request is withdrawn.
    """
    name = f"{uuid.uuid4().hex}.json"
    asked, answered = _requests(directory) / name, _answers(directory) / name
    write_file(asked, request.model_dump_json())
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if answered.exists():
            try:
                return Answer.model_validate_json(_content(answered))
            except ValidationError:
                raise UserError(f"{answered} is not an answer of a run; see `brain status {directory.root}`.") from None
            finally:
                answered.unlink()
        time.sleep(_LOOK_EVERY)
    asked.unlink(missing_ok=True)
    raise UserError(
        f"The run in {directory.root} gave no answer within {timeout:g} s; nothing was changed if it did not take the "
        f"request: see `brain status {directory.root}`."
    )


def take_requests(directory: RunDirectory) -> list[tuple[str, ScaleRequest | None]]:
    """Return the requests since the last call, oldest first, with the names to answer to; None: not readable."""
    taken: list[tuple[str, ScaleRequest | None]] = []
    for file in sorted(_regular(_requests(directory)), key=lambda file: file.lstat().st_mtime):
        try:
            taken.append((file.name, ScaleRequest.model_validate_json(_content(file))))
        except ValidationError:
            taken.append((file.name, None))
        file.unlink(missing_ok=True)
    return taken


def _regular(folder: Path) -> list[Path]:
    """Return a folder's files, and nothing else that somebody may have put there: a pipe would block its reader."""
    return [file for file in folder.glob("*.json") if stat.S_ISREG(_mode(file)) and not is_temporary(file)]


def _mode(file: Path) -> int:
    try:
        return file.lstat().st_mode
    except OSError:  # it is gone
        return 0


def _content(file: Path) -> bytes:
    """Return what a file holds, which is nothing if it has become anything else."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b""
    with open(handle, "rb") as opened:
        return opened.read(_LARGEST) if stat.S_ISREG(os.fstat(handle).st_mode) else b""


def answer(directory: RunDirectory, name: str, what: Answer) -> None:
    """Write the answer to a request."""
    write_file(_answers(directory) / name, what.model_dump_json())


def forget_former_requests(directory: RunDirectory) -> None:
    """Delete requests to a former start of the run, and answers that nobody has read."""
    for file in _regular(_requests(directory)):
        file.unlink(missing_ok=True)
    answers = _regular(_answers(directory))
    now = time_at(_answers(directory)) if answers else 0.0
    for file in answers:
        if now - file.lstat().st_mtime > _FORGOTTEN_AFTER:
            file.unlink(missing_ok=True)


def _requests(directory: RunDirectory) -> Path:
    return directory.control / "requests"


def _answers(directory: RunDirectory) -> Path:
    return directory.control / "answers"
