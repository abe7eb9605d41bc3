"""Runs of the real pipeline in processes of their own, as a user starts them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from brain_align.common.store.sample_store import SampleStore
from tests.locations import ROOT

BRAIN = str(Path(sys.executable).parent / "brain")
RECIPE = "deploy/recipes/demo.yaml"
START_LIMIT = 240.0  # seconds; building the demo world included

SMALL = [
    "objective.temperature=0.5",  # eight steps do not get past a sharper posterior's warnings
    "sampler.lease_prompts=8",
    "algorithm.rounds=2",
    "algorithm.prompts_per_round=16",
    "algorithm.updates_per_round=4",
    "algorithm.batch_prompts=4",
    "learner.checkpoint_steps=3",
    "evaluation.every_rounds=1",
    "evaluation.validation_prompts=12",
    "evaluation.test_prompts=24",
    "evaluation.examples=2",
]
"""The demo, cut down to what shows that everything works together."""


@dataclass(frozen=True)
class FinishedRun:
    """A run's directory and what it said."""

    directory: Path
    output: str

    def summary(self) -> dict[str, Any]:
        return json.loads((self.directory / "summary.json").read_text())

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]

    def store(self) -> SampleStore:
        run_id = json.loads((self.directory / "run.json").read_text())["recipe_digest"]
        return SampleStore(self.directory / "store", run_id, read_only=True)

    def adapter_bytes(self) -> bytes:
        return (self.directory / "adapter/adapter_model.safetensors").read_bytes()


def command(directory: Path, *overrides: str) -> list[str]:
    return [BRAIN, "run", RECIPE, f"run.dir={directory}", *SMALL, *overrides]


def run(directory: Path, *overrides: str) -> FinishedRun:
    done = subprocess.run(
        command(directory, *overrides),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * START_LIMIT,
        env=environment(),
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return FinishedRun(directory, done.stdout + done.stderr)


def environment() -> dict[str, str]:
    """Without what would point a run at somebody else's cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


@contextlib.contextmanager
def started(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed with all its descendants when the block ends."""
    with open(log, "wb") as out:
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=out, stderr=out, env=environment())
        try:
            yield process
        finally:
            kill_tree(process.pid)
            process.wait()


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants, as a power cut or an out-of-memory killer would."""
    with contextlib.suppress(psutil.NoSuchProcess):
        victims = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        psutil.wait_procs(victims, timeout=20)


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, limit: float = START_LIMIT
) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert process.poll() is None, f"ended before the moment came: {log.read_text()}"
        assert time.monotonic() < deadline, f"the moment never came: {log.read_text()}"
        time.sleep(0.02)


def parts(directory: Path, kind: str) -> int:
    return len(list((directory / "store" / kind).glob("*.arrow"))) if directory.exists() else 0
