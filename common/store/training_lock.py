"""The training lock: one process at a time trains on a store, wherever its run directory lies, without a lock server.

    claims/asks-<token>.json     a process that requests the lock
    claims/holds-<token>.json    the process that holds the lock, renewed every few seconds

A process first writes its request and then looks for others, so of two simultaneous ones at least one sees the other:
at its second look at the latest, since the first can only miss a request that just turns into a lock. docs/store.md
states when a lock ends. An age is the difference between the times of two files, both by the clock of the backend.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pyarrow as pa

from brain_align.common.errors import TryAgainError, UserError
from brain_align.common.store.files.backends import Entry, StorageBackend, unusable
from brain_align.common.system.processes import Process, this_process

DIRECTORY = "claims"
RENEWED_EVERY = 10.0  # seconds
STALE_AFTER = 60.0  # seconds without renewal
_LOOKS_EVERY = 2.0  # seconds, while it waits for a holder that may be dead
_LOG = logging.getLogger(__name__)


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
        if not holders:
            raise UserError(
                f"The sample store {self._backend.uri} has lost this run's training lock: its directory was removed, "
                f"replaced or unmounted; nothing more was recorded: put it back, and restart this run."
            )
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


class _HeldError(TryAgainError):
    """Another process holds the lock, or asks for it."""

    def __init__(self, message: str, holder: Entry, seconds_left: float | None) -> None:
        super().__init__(message)
        self.holder = holder
        self.seconds_left = seconds_left  # until the lock ends if the holder is dead; None: it is alive


@contextmanager
def hold_training_lock(backend: StorageBackend, waiting: Callable[[str], None] | None = None) -> Iterator[TrainingLock]:
    """Hold the training lock of a store.

    If `waiting` is given, a holder that may be dead is waited for, until it has renewed the lock or the lock ends;
    `waiting` is called once with a sentence on it.

    Raises:
        TryAgainError: another process holds it.
        UserError: the store cannot be written.
    """
    lock = _acquired(backend) if waiting is None else _acquired_after_waiting(backend, waiting)
    try:
        yield lock
    finally:
        lock.end()


def _acquired_after_waiting(backend: StorageBackend, waiting: Callable[[str], None]) -> TrainingLock:
    seen: dict[str, float] = {}  # when a holder's file was last renewed, at the first look
    deadline, said = time.monotonic() + STALE_AFTER + RENEWED_EVERY, False
    while True:
        try:
            return _acquired(backend)
        except _HeldError as held:
            renewed = seen.setdefault(held.holder.name, held.holder.modified) != held.holder.modified
            if held.seconds_left is None or renewed or time.monotonic() > deadline:
                raise
            if not said:
                waiting(f"waiting up to {held.seconds_left:.0f} s: {held}")
            said = True
        time.sleep(_LOOKS_EVERY)


def _acquired(backend: StorageBackend) -> TrainingLock:
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
    return TrainingLock(backend, holding, ended)


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
                raise _held(backend, other, entry, silent, on_this_machine=gone is False)
            backend.remove(path)
            ended.add(entry.name.replace("asks-", "holds-"))
    return frozenset(ended)


def _decoded(content: pa.Buffer) -> Process:
    """Return the process that wrote a file; for an unreadable one, only the age decides whether it has ended."""
    try:
        return Process(**json.loads(content.to_pybytes()))
    except (ValueError, TypeError):
        return Process("an unknown host", "", 0, 0)


def _held(
    backend: StorageBackend, holder: Process, entry: Entry, silent: float, *, on_this_machine: bool
) -> _HeldError:
    process = f"process {holder.pid} on {holder.host}"
    if on_this_machine and silent > STALE_AFTER:
        stopped = (
            f"The sample store {backend.uri} is held for training by {process}, which has been silent for "
            f"{silent:.0f} s but is stopped, not dead; end it (kill -9 {holder.pid}), or set another store.uri."
        )
        return _HeldError(stopped, entry, None)
    left = None if on_this_machine else STALE_AFTER - silent
    dead = "" if left is None else f" (if it is dead, the lock expires in {left:.0f} s)"
    held = (
        f"The sample store {backend.uri} is being trained on by {process}{dead}, and only one run at a time can; "
        f"wait for it, stop it, or set another store.uri."
    )
    return _HeldError(held, entry, left)
