"""`brain evaluate` with the real engines: exports equal their version, a kill loses nothing, bad input is refused."""

import json
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.evaluate.settings import PROMPTS_PER_REQUEST
from tests.integration.deploy.pipeline_runs import (
    BRAIN,
    START_LIMIT,
    FinishedRun,
    environment,
    kill_tree,
    parts,
    started,
    wait_for,
)
from tests.locations import ROOT

pytestmark = pytest.mark.timeout(900)


def brain(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [BRAIN, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=2 * START_LIMIT, env=environment(), check=False
    )


@pytest.fixture(scope="module")
def exported(uninterrupted: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with version 2 of a run as adapter and as model, which lies in a cache of the hub, too."""
    root = tmp_path_factory.mktemp("exported")
    for name, options in (("adapter", []), ("model", ["--merge"])):
        done = brain("export", uninterrupted.directory, "--version", 2, "--output", root / name, *options)
        assert done.returncode == 0, done.stderr
    return root


def test_exports_answer_as_their_version_does_and_a_hub_id_as_its_directory(
    uninterrupted: FinishedRun, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub/models--some--model/snapshots/abc"
    shutil.copytree(exported / "model", snapshot)
    (tmp_path / "hub/models--some--model/refs").mkdir()
    (tmp_path / "hub/models--some--model/refs/main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    whats = [f"{uninterrupted.directory}@2", exported / "adapter", exported / "model", "some/model"]
    out = tmp_path / "out"
    done = brain(
        "evaluate",
        *whats,
        "--greedy",
        "--prompts",
        12,
        "--output",
        out,
        "data.gold_column=null",
        "sampling.max_tokens=8",
    )
    assert done.returncode == 0, done.stderr
    assert "has no reference outputs" in done.stdout.replace("\n", " ")
    found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert found["opponent"] == {"name": f"{uninterrupted.directory}@0", "kind": "model"}
    rows = pq.read_table(out / "outputs.parquet").to_pylist()
    assert len(rows) == 5 * 2 * 12
    greedy: dict[str, list[tuple[str, str, float]]] = {
        what: [] for what in (*map(str, whats), f"{uninterrupted.directory}@0")
    }
    for row in rows:
        assert row["tokens"] <= 8
        if row["decoding"] == "greedy":
            greedy[row["what"]].append((row["prompt_id"], row["output"], row["logprob"]))
    first, *others = [greedy[str(what)] for what in whats]
    for other in others:
        assert [one[:2] for one in other] == [one[:2] for one in first]
        assert [one[2] for one in other] == pytest.approx([one[2] for one in first], abs=1e-3)
    assert greedy[f"{uninterrupted.directory}@0"] != first
    by_what = {(one["what"], one["decoding"]): one for one in found["outputs"]}
    assert by_what[str(whats[0]), "greedy"]["kl_to_prior"] is None
    assert abs(by_what[f"{uninterrupted.directory}@0", "sampled"]["kl_to_prior"]["mean"]) < 1e-3


def test_a_killed_evaluation_continues_and_samples_nothing_twice(uninterrupted: FinishedRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", f"{uninterrupted.directory}@2", "--prompts", "300", "--output", str(out)]
    log = tmp_path / "log"
    with started([BRAIN, *arguments], log) as process:
        wait_for(lambda: parts(out, "groups") > 0, process, log)
        kill_tree(process.pid)
    before = SampleStore(out / "store", None, read_only=True)
    kept = before.groups(list(before.group_ids))["finished_at"].to_pylist()
    assert len(kept) in range(PROMPTS_PER_REQUEST, 300, PROMPTS_PER_REQUEST)
    done = brain(*arguments)
    assert done.returncode == 0, done.stderr
    after = SampleStore(out / "store", None, read_only=True)
    assert after.counts()["groups"] == 300
    assert after.groups(list(before.group_ids))["finished_at"].to_pylist() == kept
    again = brain(*arguments)
    assert "starting the services" not in again.stdout
    assert (out / "evaluation.json").exists()


def test_prompts_that_were_trained_on_are_refused(uninterrupted: FinishedRun, tmp_path: Path) -> None:
    train = "{world}/prompts/train.jsonl"
    done = brain(
        "evaluate", uninterrupted.directory, "--prompts", 4000, f"data.test={train}", "--output", tmp_path / "out"
    )
    assert done.returncode == 2
    assert "was trained on" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{run}@99"], "has versions 0 to"),
        (["{out}"], "is neither a run"),
        (["{run}/adapter"], "--recipe"),
        (["no/such-thing", "--recipe", "{run}"], "hub"),
    ],
)
def test_bad_input_gives_one_sentence(uninterrupted, tmp_path, arguments, says) -> None:
    (tmp_path / "empty").mkdir()
    places = {"run": str(uninterrupted.directory), "out": str(tmp_path / "empty")}
    done = brain("evaluate", *(one.format(**places) for one in arguments), "--output", tmp_path / "out")
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
