"""The `brain run` command on a machine: started, resumed, watched by its status file and its store."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.cluster import Cluster, until
from tests.chaos.counting import Seen
from tests.chaos.machines import ChaosError, Machines
from tests.chaos.outside import KEYS
from tests.chaos.stored import Stored, StoreReader
from tests.locations import ROOT

BRAIN = str(Path(sys.executable).parent / "brain")
RECIPE = ROOT / "tests/chaos/recipe.yaml"
_TRY_AGAIN = 75  # the exit status where the same command may work later: a dead predecessor's lock has not expired


class Command:
    """One run, in as many starts as it takes."""

    def __init__(
        self, machines: Machines, folder: Path, settings: list[str], reader: StoreReader, limit: float
    ) -> None:
        self.directory = folder / "run"
        self.seen = Seen()
        self._machines = machines
        self._logs = folder / "logs"
        self._settings = settings
        self._reader = reader
        self._limit = limit
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._machine = ""

    # -- starts and ends ---------------------------------------------------------------------------------------------

    def start(self, cluster: Cluster, machine: str) -> None:
        self._starts += 1
        self._began = time.time()
        self._machine = machine
        command = [BRAIN, "run", str(RECIPE), f"run.dir={self.directory}", f"ray.address={cluster.address}"]
        self._process = self._machines.start(machine, [*command, *self._settings], self.log, KEYS)

    def resume(self, cluster: Cluster, machine: str) -> int:
        """Start it as a controller would: again while its dead predecessor still holds the store; says how often."""
        refusals = 0
        deadline = time.monotonic() + self._limit
        while True:
            self.start(cluster, machine)
            until("the resumed run is at work, or ends", lambda: self.works() or self.ended() is not None, self._limit)
            if self.ended() is None:
                return refusals
            if self.ended() != _TRY_AGAIN or time.monotonic() > deadline:
                raise ChaosError(f"The run did not resume: {self.last_words()}")
            refusals += 1
            time.sleep(5)

    def terminate(self) -> int:
        """SIGTERM, as `ray job stop` and every scheduler send it; returns the exit code."""
        self._inner().send_signal(signal.SIGTERM)
        return self.wait_for_end()

    def wait_for_end(self) -> int:
        process = self._process
        assert process is not None
        until("`brain run` ends", lambda: process.poll() is not None, self._limit)
        return int(process.returncode)

    def end(self) -> None:
        """End it whatever it does."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def ended(self) -> int | None:
        return None if self._process is None else self._process.poll()

    @property
    def log(self) -> Path:
        return self._logs / f"brain-run-{self._starts}.log"

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()[-8:]
        return "\n".join([f"exit {self.ended()}; {self.log} ends:", *lines])

    # -- what it does ------------------------------------------------------------------------------------------------

    def stored(self) -> Stored:
        """What is in the store now; it must be there at the end, too."""
        stored = self._reader.read()
        self.seen = self.seen.joined(stored)
        return stored

    def steps(self) -> int:
        return len({row["step"] for row in self.stored().steps})

    def status(self) -> dict[str, Any]:
        """The status that this start has written, or nothing."""
        try:
            status = json.loads((self.directory / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return status if status["started_at"] > self._began else {}

    def works(self) -> bool:
        return self.status().get("state") == "running"

    def whole(self) -> bool:
        """It is at work with all replicas of all services."""
        pools = self.status().get("services", {}).values()
        return self.works() and all(pool["ready"] == pool["target"] for pool in pools)

    def trained_since(self, moment: float) -> bool:
        """A step was trained on a group that was sampled after that moment: all stages work again."""
        stored = self.stored()
        fresh = {row["group_id"] for row in stored.groups if row["started_at"] > moment}
        return any(fresh.intersection(row["group_ids"]) for row in stored.steps)

    def until(self, what: str, condition: Callable[[], object]) -> float:
        """Wait while the run goes on; a run that ends meanwhile has failed."""

        def goes_on() -> object:
            if self.ended() is not None:
                raise ChaosError(f"The run ended before {what}: {self.last_words()}")
            return condition()

        return until(what, goes_on, self._limit, pause=1.0)

    def _inner(self) -> psutil.Process:
        for process in self._machines.processes(self._machine, f"{BRAIN} run"):
            return process
        raise ChaosError(f"No `brain run` lives on {self._machine}: {self.last_words()}")
