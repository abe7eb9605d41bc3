"""The real pipeline overlapped, while one of its vLLM samplers is killed and another one is added."""

import subprocess
from pathlib import Path

import psutil
import pytest

from brain_align.common.schemas import PROPOSAL
from brain_align.deploy.monitor.status import Status, read_status
from brain_align.deploy.run.directory import RunDirectory
from tests.integration.deploy.pipeline_runs import BRAIN, ROOT, FinishedRun, command, environment, started, wait_for

pytestmark = pytest.mark.timeout(900)

OVERLAPPED = [
    "logprobs.proposal=recomputed",
    "algorithm.max_staleness=1",
    "algorithm.rounds=3",
    "sampler.replicas=2",
    "sampler.cpus=0.4",
    "evaluation.validation_prompts=4",
    "evaluation.test_prompts=4",
    "evaluation.every_rounds=3",
]


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of an overlapped run that lost a sampler and got another while it went on."""
    place = tmp_path_factory.mktemp("elastic")
    directory, log = place / "run", place / "log"
    with started(command(directory, *OVERLAPPED), log) as process:
        wait_for(lambda: sampled(directory) >= 1, process, log)
        samplers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "SamplerActor" in " ".join(child.cmdline())
        ]
        samplers[0].kill()
        grow = [BRAIN, "scale", str(directory), "samplers=3", "--timeout", "60"]
        done = subprocess.run(grow, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment())
        assert done.returncode == 0 and "samplers: 2 -> 3" in done.stdout, done.stderr
        assert process.wait(600) == 0, log.read_text()
    return directory


def test_a_sampler_is_killed_and_one_is_added_in_mid_run(elastic: Path) -> None:
    store = FinishedRun(elastic, "").store()
    groups = list(store.group_ids)
    assert len(groups) == len(set(groups)) == 48 and store.counts()["scores"] == 3 * 48
    assert sorted(group for row in store.steps() for group in row["group_ids"]) == sorted(groups)
    ended = status(elastic)
    assert ended is not None and not ended.quarantined
    assert [change.after for change in ended.scaling] == [3]
    assert sum(replica.losses for replica in ended.services["samplers"].replicas) == 1


def test_overlapped_rounds_keep_the_staleness_bound(elastic: Path) -> None:
    store = FinishedRun(elastic, "").store()
    staleness = {row["round"] - row["proposal_version"] for row in store.index().to_pylist()}
    assert staleness == {0, 1}


def test_recomputed_proposals_are_the_sampler_s_to_rounding(elastic: Path) -> None:
    finished = FinishedRun(elastic, "")
    store = finished.store()
    rows = store.groups(list(store.group_ids)).to_pylist()
    recomputed = store.scores([row["group_id"] for row in rows], PROPOSAL)["values"].to_pylist()
    for row, values in zip(rows, recomputed, strict=True):
        sampled = [sum(output["token_logprobs"]) for output in row["outputs"]]
        assert values == pytest.approx(sampled, abs=2e-3)
    assert {row["proposal_version"] for row in rows} >= {0, 1}
    steps = [row["metrics"] for row in store.steps()]
    assert len(steps) == 12
    assert all(0 < metrics["sampler_gap_max"] < 1e-4 for metrics in steps)


def status(directory: Path) -> Status | None:
    run = RunDirectory(directory)
    return read_status(run) if run.status.exists() else None


def sampled(directory: Path) -> int:
    now = status(directory)
    return 0 if now is None else now.progress.sampled
