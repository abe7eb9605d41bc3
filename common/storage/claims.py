"""Who trains on a store: one conductor at a time, wherever its run directory lies and without a lock server.

    claims/asks-<token>.json     somebody looks whether the store is free
    claims/holds-<token>.json    who trains on it, renewed every few seconds

Whoever asks writes that down first and looks for others then, so that of two at the same moment at least one sees the
other. A claim ends when it is given back, when its process is gone (on the same machine), or when it has not been
renewed for a minute. Ages are differences between two files' times, both by the clock of the place where they lie.
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

from common.errors import UserError
from common.storage.places import Place

DIRECTORY = "claims"
RENEWED_EVERY = 10.0  # seconds
STALE_AFTER = 60.0  # seconds without renewal
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
        return _started(self.pid) != self.started if self.machine == here.machine else None


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
    """When a process started; -1: there is none."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    return int(facts.rpartition(")")[2].split()[19])  # a program's name may hold anything, parentheses too


_BOOT = _boot()


class Claim:
    """The right to record steps, while it lasts."""

    def __init__(self, place: Place, name: str) -> None:
        self._place = place
        self._name = name
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="store claim", daemon=True)
        self._renewing.start()

    def check(self) -> None:
        """Make sure that the claim stands.

        Raises:
            UserError: this process was silent for so long that another has taken the store over.
        """
        holders = [entry.name for entry in self._place.list(DIRECTORY) if entry.name.startswith("holds-")]
        if holders != [self._name]:
            raise UserError(
                f"The sample store {self._place.uri} is trained on by another run by now, as this one gave no sign of "
                f"life for {STALE_AFTER:.0f} s; nothing more was recorded: stop the other, and start this one again."
            )

    def end(self) -> None:
        """Give the store back."""
        self._ended.set()
        self._renewing.join()
        self._place.remove(f"{DIRECTORY}/{self._name}")

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            try:
                if any(entry.name == self._name for entry in self._place.list(DIRECTORY)):
                    _write(self._place, self._name)
            except (OSError, UserError) as error:
                _LOG.warning("The claim on %s was not renewed: %s", self._place.uri, error)


@contextmanager
def claimed(place: Place) -> Iterator[Claim]:
    """Hold a store for training.

    Raises:
        UserError: another process holds it.
    """
    try:
        claim = _claim(place)
    except OSError as error:
        raise UserError(f"The sample store {place.uri} cannot be written: {error.strerror or error}.") from error
    try:
        yield claim
    finally:
        claim.end()


def _claim(place: Place) -> Claim:
    token = uuid.uuid4().hex[:8]
    asking, holding = f"asks-{token}.json", f"holds-{token}.json"
    try:
        _write(place, asking)
        _refuse_others(place, asking)
        _write(place, holding)  # before the other goes, so that who looks in between sees one of the two
    finally:
        place.remove(f"{DIRECTORY}/{asking}")
    return Claim(place, holding)


def _write(place: Place, name: str) -> None:
    place.put(DIRECTORY, name, pa.py_buffer(json.dumps(asdict(this_process())).encode()))


def _refuse_others(place: Place, asking: str) -> None:
    """Remove what is left of processes that have ended; refuse to go on if any other is alive."""
    here, entries = this_process(), place.list(DIRECTORY)
    now = next(entry.modified for entry in entries if entry.name == asking)
    for entry in entries:
        path = f"{DIRECTORY}/{entry.name}"
        if entry.name != asking:
            try:
                other = _decoded(place.read(path))
            except FileNotFoundError:
                continue  # it has just ended
            gone, silent = other.is_gone(here), now - entry.modified
            if not gone and (gone is False or silent <= STALE_AFTER):
                raise _held(place, other, None if gone is False else STALE_AFTER - silent)
            place.remove(path)


def _decoded(content: pa.Buffer) -> Process:
    """Whose claim it is; of one that cannot be read, its age alone says whether it stands."""
    try:
        return Process(**json.loads(content.to_pybytes()))
    except (ValueError, TypeError):
        return Process("an unknown host", "", 0, 0)


def _held(place: Place, holder: Process, free_in: float | None) -> UserError:
    dead = "" if free_in is None else f" (if it is dead, the store is free in {free_in:.0f} s)"
    return UserError(
        f"The sample store {place.uri} is being trained on by process {holder.pid} on {holder.host}{dead}, and one run "
        f"at a time can; wait for it, stop it, or name another store.uri."
    )
