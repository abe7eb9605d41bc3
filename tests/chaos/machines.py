"""Simulated machines: Linux namespaces made by a script, so that a power cut and a network cut are real ones."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from tests.locations import ROOT, SHARED

SCRIPT_VARIABLE = "BRAIN_CLUSTER_SIM"
NETWORK = "10.77.0"
OUTSIDE = f"{NETWORK}.254"
"""This machine's address on the bridge: what is outside of the cluster is reached there."""
BRIDGE = "brsim"
GIB_NEEDED = 10
_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # of the clusters of this process
_MEMORY = {"RAY_memory_monitor_refresh_ms": "0"}  # each would take this whole machine's memory for its own
_PYTHON = str(Path(sys.executable).parent)


class ChaosError(Exception):
    """The run did not go as it should; the message says what happened."""


class ImpossibleError(ChaosError):
    """The run cannot be made here; the message says what is missing."""


def script() -> Path:
    """Return the script that makes machines.

    Raises:
        ImpossibleError: it, or something that it needs, is absent.
    """
    path = Path(os.environ.get(SCRIPT_VARIABLE) or SHARED / "cluster-sim/node.sh").resolve()
    if not path.is_file():
        raise ImpossibleError(f"The chaos run needs the script node.sh, which is not at {path}; set {SCRIPT_VARIABLE}.")
    if os.geteuid() != 0:
        raise ImpossibleError("The chaos run needs root, as it makes machines of Linux namespaces; run it as root.")
    missing = [tool for tool in ("unshare", "nsenter", "ip", "pgrep", "setsid") if shutil.which(tool) is None]
    if missing:
        raise ImpossibleError(f"The chaos run needs {', '.join(missing)}; install util-linux, iproute2 and procps.")
    namespaces = ["unshare", "-m", "-u", "-i", "-n", "-p", "--fork", "--kill-child", "--mount-proc", "true"]
    tried = subprocess.run(namespaces, capture_output=True, text=True)
    if tried.returncode:
        raise ImpossibleError(f"The chaos run needs Linux namespaces, which are refused here: {tried.stderr.strip()}")
    if psutil.virtual_memory().available < GIB_NEEDED * 2**30:
        raise ImpossibleError(f"The chaos run needs {GIB_NEEDED} GiB of free memory; end something else first.")
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        raise ImpossibleError(f"The network {BRIDGE} exists: end the other chaos run, or run `node.sh clear`.")
    return path


class Machines:
    """Machines by name; all end with the block."""

    def __init__(self, script: Path, folder: Path) -> None:
        self._script = script
        self._folder = folder
        self._environment = {**os.environ, "SIM": str(folder)}
        self._namespaces: dict[str, str] = {}  # of processes, by machine; also of those that are down

    def __enter__(self) -> "Machines":
        shutil.rmtree(self._folder, ignore_errors=True)  # process ids of another time must not be ended
        return self

    def __exit__(self, *_: object) -> None:
        self._node("clear")
        with contextlib.suppress(OSError):
            Path("/sim/tmp").rmdir()  # only the mount point: each machine had its own there

    @staticmethod
    def address(name: str) -> str:
        return f"{NETWORK}.{10 + int(name.removeprefix('n'))}"

    def up(self, name: str) -> None:
        self._node("up", name, self.address(name))
        process = int((self._folder / f"{name}.pid").read_text())
        self._namespaces[name] = os.readlink(f"/proc/{process}/ns/pid")

    def down(self, name: str) -> None:
        """Cut the power: all its processes end at once."""
        self._node("down", name)

    def cut(self, name: str) -> None:
        """Cut the network."""
        self._node("cut", name)

    def mend(self, name: str) -> None:
        self._node("mend", name)

    def start(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a command in the repository's folder on a machine; it gets no Ctrl-C of this terminal."""
        settings = [f"{key}={value}" for key, value in self._settings(environment).items()]
        arguments = [str(self._script), "in", name, "-C", str(ROOT), *settings, *command]
        with open(log, "wb") as out:
            return subprocess.Popen(
                arguments,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env=self._clean(),
                start_new_session=True,
            )

    def processes(self, name: str, *words: str) -> list[psutil.Process]:
        """The machine's living processes whose commands contain one of the words."""
        return [process for process in self._living(name) if any(word in _title(process) for word in words)]

    def titles(self, name: str, *words: str) -> list[str]:
        return [f"{_title(process)} on {name}" for process in self.processes(name, *words)]

    def left(self) -> list[str]:
        """What still runs on any machine, also on those that are down."""
        return [f"{_title(process)} on {name}" for name in self._namespaces for process in self._living(name)]

    def _living(self, name: str) -> Iterator[psutil.Process]:
        namespace = self._namespaces.get(name)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                inside = os.readlink(f"/proc/{process.pid}/ns/pid") == namespace
                if inside and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def _settings(self, environment: Mapping[str, str]) -> dict[str, str]:
        path = f"{_PYTHON}:{os.environ['PATH']}"
        return {"PYTHONPATH": str(ROOT), "PATH": path, "RAY_TMPDIR": "/sim/tmp", **_MEMORY, **_TOKEN, **environment}

    def _clean(self) -> dict[str, str]:
        """Without what would point a run at somebody else's cluster."""
        return {key: value for key, value in self._environment.items() if not key.startswith(("RAY_", "BRAIN_"))}

    def _node(self, *arguments: str) -> None:
        done = subprocess.run(
            [self._script, *arguments], env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise ChaosError(f"`node.sh {' '.join(arguments)}` failed: {done.stderr.strip() or done.stdout.strip()}")


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
