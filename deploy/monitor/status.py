"""The status of a run: it writes it into its directory every second, and others read it there."""

import os
import socket
import time
from typing import Literal

from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.deploy.conductor.progress import Progress, StatusPart
from brain_align.deploy.run.directory import RunDirectory

STALE_SECONDS = 15.0
"""A run that has not written its status for so long is not alive, whatever its last status says."""


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


class Status(StatusPart):
    """Everything that `brain status` shows."""

    state: Literal["starting", "running", "ended"]
    host: str
    pid: int
    started_at: float
    progress: Progress
    backlog: Backlog
    services: dict[str, PoolStatus]
    automatic: bool
    scaling: list[Scaling]
    quarantined: list[LeftOut]
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


def is_alive(directory: RunDirectory, status: Status) -> bool:
    """Return whether the run that wrote this status is still alive.

    On the run's own machine its process must exist; in any case its last status must be recent.
    """
    if status.state == "ended":
        return False
    if status.host == socket.gethostname() and not _process_exists(status.pid):
        return False
    return time.time() - directory.status.stat().st_mtime < STALE_SECONDS


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True
