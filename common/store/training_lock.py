"""Who trains on a store: one conductor at a time, wherever its run directory lies and without a lock server.

    claims/asks-<token>.json     somebody looks whether the store is free
    claims/holds-<token>.json    who trains on it, renewed every few seconds

Whoever asks writes that down first and looks for others then, so that of two at the same moment at least one sees the
other: at the latest at its second look, as what the first may miss is a question that just turns into a claim. A claim
ends when it is given back; when its process is gone, if that can be seen from here; and otherwise when it has not been
renewed for a minute. So a process of this machine that is stopped keeps its claim: it might go on at any moment. Ages
are differences between two files' times, both by the clock of the place where they lie.
"""

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
from brain_align.common.store.files.backends import StorageBackend

DIRECTORY = "claims"
RENEWED_EVERY = 10.0  # seconds
STALE_AFTER = 60.0  # seconds without renewal
_DEAD = frozenset("ZXx")  # states of a process that has ended, and that its parent has not asked after yet
_NONE, _HIDDEN = -1, -2  # instead of the time when a process started
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Process:
    """A process that can be told from all others.

    Attributes:
        host: its name, for people.
        machine: differs between machines, their boots, and containers that do not see each other's processes.
        pid: on that machine.
        started: in clock ticks since the machine's boot: another process may get the same pid later.
    """

    host: str
    machine: str
    pid: int
    started: int

    def is_gone(self, here: "Process") -> bool | None:
        """Whether it has ended, as far as the process `here` can see; None: it runs where `here` cannot look."""
        started = _started(self.pid) if self.machine == here.machine else _HIDDEN
        return None if started == _HIDDEN else started != self.started


def this_process() -> Process:
    """The process that runs this."""
    pid = os.getpid()
    return Process(socket.gethostname(), f"{_BOOT} {os.readlink('/proc/self/ns/pid')}", pid, _started(pid))


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return uuid.uuid4().hex  # a sandbox: nothing that another process has, so that ages alone decide


def _started(pid: int) -> int:
    """When a process started; `_NONE`: there is none; `_HIDDEN`: there is one that this one may not look at."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return _HIDDEN if _is_there(pid) else _NONE  # /proc may be mounted with hidepid
    state, *numbers = facts.rpartition(")")[2].split()  # a program's name may hold anything, parentheses too
    return _NONE if state in _DEAD else int(numbers[18])


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


_BOOT = _boot()


class TrainingLock:
    """The right to record steps, while it lasts.

    Args:
        backend: holds the files.
        name: of the claim's file.
        ended: the files of claims that this one took the place of. One of them may appear once more, when the renewal
            of a process that stood still arrives late; it is that process which has lost the store then.
    """

    def __init__(self, backend: StorageBackend, name: str, ended: frozenset[str]) -> None:
        self._backend = backend
        self._name = name
        self._expected = ended | {name}
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="store claim", daemon=True)
        self._renewing.start()

    def check(self) -> None:
        """Make sure that the claim stands.

        Raises:
            UserError: this process was silent for so long that another has taken the store over; or nobody can say, as
                the place cannot be read.
        """
        try:
            holders = self._holders()
        except OSError as error:
            raise _unusable(self._backend, "read", error) from error
        if self._name not in holders or holders - self._expected:
            raise UserError(
                f"The sample store {self._backend.uri} is trained on by another run by now, as this one was silent for "
                f"more than {STALE_AFTER:.0f} s; nothing more was recorded: stop the other run, and restart this one."
            )

    def end(self) -> None:
        """Give the store back; where that fails it is logged, and the claim ends with this process."""
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
                    if self._holders() - self._expected:  # another took the store over while this was on its way
                        self._backend.remove(f"{DIRECTORY}/{self._name}")
            except (OSError, UserError) as error:
                _LOG.warning("The claim on %s was not renewed: %s", self._backend.uri, error)


@contextmanager
def hold_training_lock(backend: StorageBackend) -> Iterator[TrainingLock]:
    """Hold a store for training.

    Raises:
        UserError: another process holds it.
    """
    try:
        claim = _claim(backend)
    except OSError as error:
        raise _unusable(backend, "written", error) from error
    try:
        yield claim
    finally:
        claim.end()


def _claim(backend: StorageBackend) -> TrainingLock:
    token = uuid.uuid4().hex[:8]
    asking, holding = f"asks-{token}.json", f"holds-{token}.json"
    try:
        _write(backend, asking)
        ended = _refuse_others(backend, asking)
        _write(backend, holding)  # before the other goes, so that who looks in between sees one of the two
    finally:
        _remove(backend, asking)
    return TrainingLock(backend, holding, ended)


def _write(backend: StorageBackend, name: str) -> None:
    backend.put(DIRECTORY, name, pa.py_buffer(json.dumps(asdict(this_process())).encode()))


def _remove(backend: StorageBackend, name: str) -> None:
    """Remove a file of this process; what is left of it where that fails is taken for ended later."""
    try:
        backend.remove(f"{DIRECTORY}/{name}")
    except (OSError, UserError) as error:
        _LOG.warning("%s/%s/%s was not removed: %s", backend.uri, DIRECTORY, name, error)


def _refuse_others(backend: StorageBackend, asking: str) -> frozenset[str]:
    """Remove what is left of processes that have ended; refuse to go on if any other is alive.

    Returns:
        The files that those which have ended would hold the store by.
    """
    # While a directory is gone through, `asks-B` may go and `holds-B` come, and neither be seen. By then B holds the
    # store, so that a second look sees it; and whoever asks later than the first look sees this process, and gives way.
    return _refuse_others_in_sight(backend, asking, "") | _refuse_others_in_sight(backend, asking, "holds-")


def _refuse_others_in_sight(backend: StorageBackend, asking: str, sort: str) -> frozenset[str]:
    here, entries, ended = this_process(), backend.list(DIRECTORY), set()
    now = next((entry.modified for entry in entries if entry.name == asking), None)
    if now is None:
        raise UserError(f"{backend.uri}/{DIRECTORY}/{asking} was removed by another process just now; start again.")
    for entry in entries:
        path = f"{DIRECTORY}/{entry.name}"
        if entry.name != asking and entry.name.startswith(sort):
            try:
                other = _decoded(backend.read(path))
            except FileNotFoundError:
                continue  # it has just ended, or become a claim
            gone, silent = other.is_gone(here), now - entry.modified
            if not gone and (gone is False or silent <= STALE_AFTER):
                raise _held(backend, other, silent, on_this_machine=gone is False)
            backend.remove(path)
            ended.add(entry.name.replace("asks-", "holds-"))
    return frozenset(ended)


def _decoded(content: pa.Buffer) -> Process:
    """Whose claim it is; of one that cannot be read, its age alone says whether it stands."""
    try:
        return Process(**json.loads(content.to_pybytes()))
    except (ValueError, TypeError):
        return Process("an unknown host", "", 0, 0)


def _held(backend: StorageBackend, holder: Process, silent: float, *, on_this_machine: bool) -> UserError:
    process = f"process {holder.pid} on {holder.host}"
    if on_this_machine and silent > STALE_AFTER:
        return UserError(
            f"The sample store {backend.uri} is held for training by {process}, which has given no sign of life for "
            f"{silent:.0f} s and is stopped, not dead; end it (kill -9 {holder.pid}), or name another store.uri."
        )
    dead = "" if on_this_machine else f" (if it is dead, the store is free in {STALE_AFTER - silent:.0f} s)"
    return UserError(
        f"The sample store {backend.uri} is being trained on by {process}{dead}, and only one run at a time can; "
        f"wait for it, stop it, or set another store.uri."
    )


def _unusable(backend: StorageBackend, how: str, error: OSError) -> UserError:
    return UserError(f"The sample store {backend.uri} cannot be {how}: {error.strerror or error}.")
