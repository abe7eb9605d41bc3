"""The real pipeline while one of its vLLM samplers is killed and another one is added."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from brain_align.deploy.monitor.status import Status, read_status
from brain_align.deploy.run.directory import RunDirectory
from tests.integration.deploy.pipeline_runs import ROOT, FinishedRun, command, environment, started, wait_for

OVERLAPPED = [
    "algorithm.max_staleness=1",
    "algorithm.rounds=3",
    "sampler.replicas=2",
    "sampler.cpus=0.4",
    "evaluation.validation_prompts=4",
    "evaluation.test_prompts=4",
    "evaluation.every_rounds=3",
]


@pytest.mark.timeout(900)
def test_a_sampler_is_killed_and_one_is_added_in_mid_run(tmp_path: Path) -> None:
    directory, log = tmp_path / "run", tmp_path / "log"
    with started(command(directory, *OVERLAPPED), log) as process:
        wait_for(lambda: sampled(directory) >= 1, process, log)
        samplers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "SamplerActor" in " ".join(child.cmdline())
        ]
        samplers[0].kill()
        grow = [
            sys.executable,
            "-m",
            "brain_align.deploy.cli",
            "scale",
            str(directory),
            "samplers=3",
            "--timeout",
            "60",
        ]
        done = subprocess.run(grow, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment())
        assert done.returncode == 0 and "samplers: 2 -> 3" in done.stdout, done.stderr
        assert process.wait(600) == 0, log.read_text()
    store = FinishedRun(directory, "").store()
    groups = list(store.group_ids)
    assert len(groups) == len(set(groups)) == 48 and store.counts()["scores"] == 96
    assert sorted(group for row in store.steps() for group in row["group_ids"]) == sorted(groups)
    ended = status(directory)
    assert ended is not None and not ended.quarantined
    assert [change.after for change in ended.scaling] == [3]
    assert sum(replica.losses for replica in ended.services["samplers"].replicas) == 1


def status(directory: Path) -> Status | None:
    run = RunDirectory(directory)
    return read_status(run) if run.status.exists() else None


def sampled(directory: Path) -> int:
    now = status(directory)
    return 0 if now is None else now.progress.sampled
