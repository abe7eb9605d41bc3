"""The status of a run: it writes it into its directory every second, and others read it there."""

import os
import time
from typing import Literal

from pydantic import Field

from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.common.system.processes import Process, this_process
from brain_align.deploy.conductor.progress import Progress, StatusPart
from brain_align.deploy.run.directory import RunDirectory

STALE_SECONDS = 15.0
"""A run that is being watched, and has not written its status for so long, is not alive."""
MOVES_WITHIN = 5.0
"""Seconds within which a live run that cannot be seen from here has certainly written its status again."""
_LOOK_EVERY = 0.2  # seconds


class ReplicaStatus(StatusPart):
    """One replica: its state, its calls in progress, how often its actor was lost, and why the last time."""

    name: str
    state: str
    calls: int
    losses: int
    trouble: str | None


class PoolStatus(StatusPart):
    """One service: how many replicas it should have, how many are ready, and each of them."""

    target: int
    ready: int
    replicas: list[ReplicaStatus]


class Scaling(StatusPart):
    """One change of a number of replicas; `at` is in seconds since the epoch."""

    at: float
    service: str
    before: int
    after: int
    reason: str


class Backlog(StatusPart):
    """The numbers of requests that wait for a sampler, and of groups that wait for scorers and for the learner."""

    leases: int
    unscored: int
    ready: int


class LeftOut(StatusPart):
    """A quarantined prompt or group; see `brain_align.deploy.schedule.quarantine.Item`."""

    purpose: str
    round: int
    prompt_id: str
    service: str
    error: str


State = Literal["starting", "running", "ended", "failed"]
OVER: tuple[State, State] = ("ended", "failed")
"""The states of a run that is over; `failed`: an error ended it."""


class Status(StatusPart):
    """Everything that `brain status` shows."""

    state: State
    failure: str | None = None  # the error that ended the run
    host: str
    pid: int
    process: Process | None = None  # earlier versions did not write it
    started_at: float
    progress: Progress
    backlog: Backlog
    services: dict[str, PoolStatus]
    learner: str | None = None  # its state, and why it waits; earlier versions did not write it
    automatic: bool
    scaling: list[Scaling]
    quarantined: list[LeftOut]
    away: dict[str, str] = Field(default_factory=dict)  # the scorers that give no values at present, and why
    warnings: list[str] = Field(default_factory=list)  # of the guards: what goes wrong with training
    store_trouble: str | None = None  # what the sample store waits for, while its requests are repeated


def write_status(directory: RunDirectory, status: Status) -> None:
    """Replace the run's status."""
    write_file(directory.status, status.model_dump_json(indent=1))


def read_status(directory: RunDirectory) -> Status:
    """Return the last status of a run.

    Raises:
        UserError: there is no run, or it has not written a readable status.
    """
    try:
        return Status.model_validate_json(directory.status.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        what = "no run has been started there yet" if directory.config.exists() else "it is not a run directory"
        raise UserError(f"{directory.root} has no status: {what}; name the directory of a run (run.dir).") from None
    except OSError as error:
        raise UserError(f"{directory.status} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise UserError(f"{directory.status} is not a status of a run of this version of brain-align.") from None


class Liveness:
    """A look, or repeated looks, at whether the run that writes a directory's status is still alive.

    A process that can be seen from here is looked up. Of another, the status must move: it is written every second, and
    its time is compared with its own earlier time alone, since the clocks of two machines differ.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._file = directory.status
        self._mark: tuple[int, int] | None = None
        self._moved_at = 0.0  # by this process's own monotonic clock

    def is_alive(self, status: Status) -> bool:
        """Return whether the run that wrote this status is still alive; where it cannot be seen, this takes seconds."""
        if status.state in OVER:
            return False
        gone = None if status.process is None else status.process.is_gone(this_process())
        return self._moves() if gone is None else not gone

    def _moves(self) -> bool:
        if self._mark is None:
            self._mark = self._look()
            deadline = time.monotonic() + MOVES_WITHIN
            while time.monotonic() < deadline:
                time.sleep(_LOOK_EVERY)
                if self._has_moved():
                    return True
            return False
        return self._has_moved() or time.monotonic() - self._moved_at < STALE_SECONDS

    def _has_moved(self) -> bool:
        mark = self._look()
        if mark is None or mark == self._mark:
            return False
        self._mark, self._moved_at = mark, time.monotonic()
        return True

    def _look(self) -> tuple[int, int] | None:
        """Return what every rewriting changes; opening the file has a network file system ask its server."""
        try:
            with open(self._file, "rb") as file:
                found = os.fstat(file.fileno())
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns


def state_of(status: Status, liveness: Liveness) -> str:
    """Return the state of a run as it is now: that of its status, or `dead` or `stopped` where that is no longer so."""
    if status.state in OVER:
        return status.state
    if not liveness.is_alive(status):
        return "dead"
    return "stopped" if status.process is not None and status.process.is_stopped(this_process()) else status.state
