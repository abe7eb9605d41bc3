"""The real learner and scorers on the store of a finished run, in processes in which vLLM cannot be imported."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from brain_align.common.policies import PolicyRegistry
from tests.integration.deploy.pipeline_runs import (
    BRAIN,
    ROOT,
    FinishedRun,
    command,
    environment,
    kill_tree,
    started,
    wait_for,
)

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(autouse=True)
def no_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process that is started finds a vLLM that cannot be imported, before any that is installed."""
    package = tmp_path / "hidden/vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('vLLM is not here')\n")
    path = os.pathsep.join(filter(None, (str(package.parent), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)


def brain(arguments: list[str]) -> FinishedRun:
    done = subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment(), check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return FinishedRun(Path(), done.stdout + done.stderr)


def version_bytes(directory: Path) -> list[bytes]:
    registry = PolicyRegistry(directory / "policies")
    return [(registry.verify(version).path / "adapter_model.safetensors").read_bytes() for version in (0, 1, 2)]


def test_vllm_cannot_be_imported() -> None:
    python = Path(BRAIN).with_name("python")
    done = subprocess.run([python, "-c", "import vllm"], capture_output=True, text=True, env=environment(), check=False)
    assert "vLLM is not here" in done.stderr


def test_a_replay_killed_and_resumed_ends_with_the_same_bytes(uninterrupted: FinishedRun, tmp_path: Path) -> None:
    directory, log = tmp_path / "replayed", tmp_path / "log"
    replay = [BRAIN, "store", "replay", str(uninterrupted.directory), "--output", str(directory)]
    with started(replay, log) as process:
        wait_for(lambda: len(list((directory / "store/steps").glob("*.arrow"))) >= 5, process, log)
        kill_tree(process.pid)
    assert not (directory / "summary.json").exists()
    said = brain(replay).output
    assert "resumed at step" in said and "evaluation skipped" in said
    assert version_bytes(directory) == version_bytes(uninterrupted.directory)
    own = FinishedRun(directory, "").store()
    assert [row["group_ids"] for row in own.steps()] == [row["group_ids"] for row in uninterrupted.store().steps()]
    assert own.counts()["groups"] == 0, "the groups stay where they are"


def test_a_replay_with_another_learner_ends_elsewhere(uninterrupted: FinishedRun, tmp_path: Path) -> None:
    replay = [BRAIN, "store", "replay", str(uninterrupted.directory), "--output", str(tmp_path / "replayed")]
    brain([*replay, "learner.learning_rate=1e-4", "objective.temperature=1"])
    ours, theirs = version_bytes(tmp_path / "replayed"), version_bytes(uninterrupted.directory)
    assert ours[0] == theirs[0] and ours[1] != theirs[1]


def test_a_store_without_scores_is_scored_anew_and_trained_to_the_same_bytes(
    uninterrupted: FinishedRun, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(uninterrupted.directory / "store", source)
    shutil.rmtree(source / "scores")
    before = sorted(source.rglob("*"))
    directory = tmp_path / "trained"
    said = brain(command(directory, "sampler.replicas=0", f"store.uri={source}")).output
    assert "32 of the 32 groups" in said and "lack values of 'reward'" in said
    assert version_bytes(directory) == version_bytes(uninterrupted.directory)
    assert sorted(source.rglob("*")) == before
    logs = {file.name for file in (directory / "logs").iterdir()}
    assert logs == {"brain.log", "learner-0.log", "scorer-prior-0.log", "scorer-reward-0.log"}
