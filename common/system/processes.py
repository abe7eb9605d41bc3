"""Which process is which, on all machines, and whether it is still alive.

Neither a host's name nor a process's number says which process it is: containers share names, and numbers are used
again. Nor does the time of a file, compared with the own clock, say whether its writer is alive: clocks differ.
"""

import functools
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

_DEAD = frozenset("ZXx")  # states of an ended process that its parent has not waited for yet
_STOPPED = frozenset("Tt")
_NONE, _HIDDEN = -1, -2  # in place of a start time


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

    def is_stopped(self, here: "Process") -> bool:
        """Return whether it is seen to be stopped (SIGSTOP, Ctrl-Z): it does nothing until it is continued."""
        return self.is_gone(here) is False and _look(self.pid)[0] in _STOPPED


def this_process() -> Process:
    """Return the identity of the current process."""
    pid = os.getpid()
    return Process(socket.gethostname(), _machine(), pid, _started(pid))


@functools.cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # a sandbox: matches no other process, so that only ages decide


def _started(pid: int) -> int:
    """Return when a process started, `_NONE` if it does not exist, or `_HIDDEN` if it cannot be inspected."""
    state, started = _look(pid)
    return _NONE if state in _DEAD else started


def _look(pid: int) -> tuple[str, int]:
    """Return a process's state, a letter of the kernel's or nothing, and when it started, as `_started` does."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return "", _HIDDEN if _is_there(pid) else _NONE  # /proc may be mounted with hidepid
    state, *numbers = status.rpartition(")")[2].split()  # a program's name may hold any character, even parentheses
    return state, int(numbers[18])


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
