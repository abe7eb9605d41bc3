"""A Ray cluster on simulated machines: a head with the learner's place, and workers with room for the others."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.machines import ChaosError, Machines

PORT = 6401
LEARNER, SAMPLER, SCORER = "ray::LearnerActor", "ray::SamplerActor", "ray::ScorerActor"
SERVICES = (LEARNER, SAMPLER, SCORER, "VLLM", "ray::WeightServer")
"""What the product starts on a machine, by the beginnings of the processes' titles."""
_RAY = str(Path(sys.executable).parent / "ray")
_WORKER = ("--num-cpus=4", "--num-gpus=1")  # see the recipe
_HEAD = ("--num-cpus=1", "--num-gpus=2")  # the learner alone
_WORKING_HEAD = ("--num-cpus=9", "--num-gpus=4")  # the learner and whatever has no room on two workers
_COMMON = ("--block", "--disable-usage-stats", "--object-store-memory=200000000")


class Cluster:
    """The cluster's machines, which share this machine's file system, but neither processes nor network."""

    def __init__(self, machines: Machines, logs: Path, limit: float) -> None:
        self._machines = machines
        self._logs = logs
        self._limit = limit
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.head = ""

    @property
    def address(self) -> str:
        return f"{self._machines.address(self.head)}:{PORT}"

    @property
    def workers(self) -> list[str]:
        return [name for name in self._nodes if name != self.head]

    def start_head(self, name: str, *, works: bool = False) -> None:
        """Start a new cluster; a head that `works` takes other services, too."""
        self.head = name
        amounts = _WORKING_HEAD if works else _HEAD
        place = ("--head", f"--port={PORT}", "--temp-dir=/sim/tmp", "--include-dashboard=false")
        self._start_node(name, *place, *amounts)
        self._until_up(name)

    def join(self, *names: str) -> None:
        for name in names:
            self._start_node(name, f"--address={self.address}", *_WORKER)
        for name in names:
            self._until_up(name)

    def power_cut(self, name: str) -> None:
        self._machines.down(name)
        self._nodes.pop(name).wait(30)

    def reboot(self, name: str) -> None:
        self._machines.up(name)
        self.join(name)

    def stop_ray(self, name: str) -> None:
        """Stop Ray on a machine, as its operator would after the head is gone."""
        log = self._logs / f"ray-stop-{name}.log"
        self._machines.start(name, [_RAY, "stop", "--force"], log, {}).wait(self._limit)
        self._nodes[name].wait(self._limit)

    def services(self) -> list[str]:
        """The product's processes on all machines that are up."""
        return [title for name in self._nodes for title in self._machines.titles(name, *SERVICES)]

    def worker_with(self, *titles: str) -> str | None:
        """A worker on which at least one process of each title lives."""
        has = self._machines.titles
        return next((name for name in self.workers if all(has(name, title) for title in titles)), None)

    def _start_node(self, name: str, *arguments: str) -> None:
        """Start Ray; `--block` makes a parent of its processes that waits for those that have ended."""
        ip = f"--node-ip-address={self._machines.address(name)}"
        log = self._log(name, len(list(self._logs.glob(f"ray-{name}-*"))))
        self._nodes[name] = self._machines.start(name, [_RAY, "start", ip, *_COMMON, *arguments], log, {})

    def _until_up(self, name: str) -> None:
        log = self._log(name, len(list(self._logs.glob(f"ray-{name}-*"))) - 1)

        def up() -> bool:
            if self._nodes[name].poll() is not None:
                raise ChaosError(f"Ray did not start on {name}: {log.read_text()[-2000:]}")
            return "Ray runtime started" in log.read_text()

        until(f"Ray runs on {name}", up, self._limit)

    def _log(self, name: str, number: int) -> Path:
        return self._logs / f"ray-{name}-{number}.log"


def until(what: str, condition: Callable[[], object], limit: float, pause: float = 0.5) -> float:
    """Wait for a condition; return for how many seconds.

    Raises:
        ChaosError: it did not come about within `limit` seconds.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit:
            raise ChaosError(f"Within {limit:.0f} s it did not come about that {what}.")
        time.sleep(pause)
    return time.monotonic() - began
