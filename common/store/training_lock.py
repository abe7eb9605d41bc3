"""The training lock: one process at a time trains on a store, wherever its run directory lies, without a lock server.

    claims/asks-<token>.json     a process that requests the lock
    claims/holds-<token>.json    the process that holds the lock, renewed every few seconds

A process first writes its request and then looks for others, so of two simultaneous ones at least one sees the other:
at its second look at the latest, since the first can only miss a request that just turns into a lock. docs/store.md
states when a lock ends. An age is the difference between the times of two files, both by the clock of the backend.
"""

import functools
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from brain_align.common.errors import UserError
from brain_align.common.store.files.backends import StorageBackend, unusable

DIRECTORY = "claims"
RENEWED_EVERY = 10.0  # seconds
STALE_AFTER = 60.0  # seconds without renewal
_DEAD = frozenset("ZXx")  # states of an ended process that its parent has not waited for yet
_NONE, _HIDDEN = -1, -2  # in place of a start time
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Process:
    """The identity of a process among all processes."""

    host: str  # for messages
    machine: str  # differs between machines, boots, and containers that do not see each other's processes
    pid: int
    started: int  # clock ticks since the machine's boot, as another process may get the same pid later

    def is_gone(self, here: "Process") -> bool | None:
        """Return whether it has ended, or None if it runs where the process `here` cannot see it."""
        started = _started(self.pid) if self.machine == here.machine else _HIDDEN
        return None if started == _HIDDEN else started != self.started


def this_process() -> Process:
    """Return the identity of the current process."""
    pid = os.getpid()
    return Process(socket.gethostname(), f"{_boot()} {os.readlink('/proc/self/ns/pid')}", pid, _started(pid))


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return uuid.uuid4().hex  # a sandbox: matches no other process, so that only ages decide


def _started(pid: int) -> int:
    """Return when a process started, `_NONE` if it does not exist, or `_HIDDEN` if it cannot be inspected."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return _HIDDEN if _is_there(pid) else _NONE  # /proc may be mounted with hidepid
    state, *numbers = status.rpartition(")")[2].split()  # a program's name may hold any character, even parentheses
    return _NONE if state in _DEAD else int(numbers[18])


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


class TrainingLock:
    """The right to record steps on a store.

    One of the files in `ended`, those of the expired locks that this one replaced, may reappear when a stalled process
    renews it late; that process has then lost the store.
    """

    def __init__(self, backend: StorageBackend, name: str, ended: frozenset[str]) -> None:
        self._backend = backend
        self._name = name
        self._expected = ended | {name}
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="training lock", daemon=True)
        self._renewing.start()

    def check(self) -> None:
        """Make sure that this process still holds the lock.

        Raises:
            UserError: this process was silent for so long that another has taken over the store; or the backend cannot
                be read.
        """
        try:
            holders = self._holders()
        except OSError as error:
            raise unusable(self._backend, "read", error) from error
        if self._name not in holders or holders - self._expected:
            raise UserError(
                f"The sample store {self._backend.uri} is trained on by another run by now, as this one was silent for "
                f"more than {STALE_AFTER:.0f} s; nothing more was recorded: stop the other run, and restart this one."
            )

    def end(self) -> None:
        """Release the lock; a failure is logged, and the lock then ends with this process."""
        self._ended.set()
        self._renewing.join()
        _remove(self._backend, self._name)

    def _holders(self) -> set[str]:
        return {entry.name for entry in self._backend.list(DIRECTORY) if entry.name.startswith("holds-")}

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            try:
                if self._name in self._holders():
                    _write(self._backend, self._name)
                    if self._holders() - self._expected:  # another process took over during the renewal
                        self._backend.remove(f"{DIRECTORY}/{self._name}")
            except (OSError, UserError) as error:
                _LOG.warning("The training lock of %s was not renewed: %s", self._backend.uri, error)


@contextmanager
def hold_training_lock(backend: StorageBackend) -> Iterator[TrainingLock]:
    """Hold the training lock of a store.

    Raises:
        UserError: another process holds it.
    """
    token = uuid.uuid4().hex[:8]
    asking, holding = f"asks-{token}.json", f"holds-{token}.json"
    try:
        _write(backend, asking)
        ended = _refuse_others(backend, asking)
        _write(backend, holding)  # before the request goes, so that others always see one of the two
    except OSError as error:
        raise unusable(backend, "written", error) from error
    finally:
        _remove(backend, asking)
    lock = TrainingLock(backend, holding, ended)
    try:
        yield lock
    finally:
        lock.end()


def _write(backend: StorageBackend, name: str) -> None:
    backend.put(DIRECTORY, name, pa.py_buffer(json.dumps(asdict(this_process())).encode()))


def _remove(backend: StorageBackend, name: str) -> None:
    """Remove a file of this process; if that fails, others will find that its process has ended."""
    try:
        backend.remove(f"{DIRECTORY}/{name}")
    except (OSError, UserError) as error:
        _LOG.warning("%s/%s/%s was not removed: %s", backend.uri, DIRECTORY, name, error)


def _refuse_others(backend: StorageBackend, asking: str) -> frozenset[str]:
    """Remove the files of ended processes, and raise if another is alive; return the names of the ended ones' locks."""
    # While a directory is being listed, `asks-B` may disappear and `holds-B` appear, and the listing may have neither.
    # By then B holds the lock, so a second look sees it. A process that asks after the first look sees this one.
    return _refuse_others_in_sight(backend, asking, "") | _refuse_others_in_sight(backend, asking, "holds-")


def _refuse_others_in_sight(backend: StorageBackend, asking: str, sort: str) -> frozenset[str]:
    here, entries, ended = this_process(), backend.list(DIRECTORY), set()
    now = next((entry.modified for entry in entries if entry.name == asking), None)
    if now is None:
        raise UserError(f"{backend.uri}/{DIRECTORY}/{asking} was just removed by another process; start again.")
    for entry in entries:
        path = f"{DIRECTORY}/{entry.name}"
        if entry.name != asking and entry.name.startswith(sort):
            try:
                other = _decoded(backend.read(path))
            except FileNotFoundError:
                continue  # it has just ended, or acquired the lock
            gone, silent = other.is_gone(here), now - entry.modified
            if not gone and (gone is False or silent <= STALE_AFTER):
                raise _held(backend, other, silent, on_this_machine=gone is False)
            backend.remove(path)
            ended.add(entry.name.replace("asks-", "holds-"))
    return frozenset(ended)


def _decoded(content: pa.Buffer) -> Process:
    """Return the process that wrote a file; for an unreadable one, only the age decides whether it has ended."""
    try:
        return Process(**json.loads(content.to_pybytes()))
    except (ValueError, TypeError):
        return Process("an unknown host", "", 0, 0)


def _held(backend: StorageBackend, holder: Process, silent: float, *, on_this_machine: bool) -> UserError:
    process = f"process {holder.pid} on {holder.host}"
    if on_this_machine and silent > STALE_AFTER:
        return UserError(
            f"The sample store {backend.uri} is held for training by {process}, which has been silent for "
            f"{silent:.0f} s but is stopped, not dead; end it (kill -9 {holder.pid}), or set another store.uri."
        )
    dead = "" if on_this_machine else f" (if it is dead, the lock expires in {STALE_AFTER - silent:.0f} s)"
    return UserError(
        f"The sample store {backend.uri} is being trained on by {process}{dead}, and only one run at a time can; "
        f"wait for it, stop it, or set another store.uri."
    )
