"""`brain compare` with the real engines: killed after its first run, then run again to the end."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brain_align.common.store.sample_store import SampleStore
from tests.integration.deploy.pipeline_runs import ROOT, START_LIMIT, environment, started, wait_for

TINY = [
    "sampling.n=4",
    "sampler.lease_prompts=8",
    "algorithm.rounds=2",
    "algorithm.prompts_per_round=8",
    "algorithm.updates_per_round=2",
    "algorithm.batch_prompts=4",
    "evaluation.every_rounds=2",
    "evaluation.validation_prompts=8",
    "evaluation.test_prompts=12",
]


ASKED = ("--objectives", "dpo-sft,brain", "--seeds", "0", "--learning-rates", "0.003", "--parallel", "1")


def command(out: Path, asked: Sequence[str] = ASKED) -> list[str]:
    recipe = "deploy/recipes/compare-demo.yaml"
    return [sys.executable, "-m", "brain_align.deploy.cli", "compare", recipe, *asked, "--out", str(out), *TINY]


def run(out: Path, asked: Sequence[str] = ASKED, *, status: int = 0) -> str:
    done = subprocess.run(
        command(out, asked), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=2 * START_LIMIT
    )
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def store_of(root: Path, kind: str = "store") -> SampleStore:
    return SampleStore(root / kind, None, read_only=True)


def groups_of_round(store: SampleStore, round_: int) -> list[str]:
    index = store.index().to_pylist()
    return [row["group_id"] for row in index if row["round"] == round_]


@pytest.mark.timeout(1500)
def test_two_methods_on_the_same_groups_killed_in_between(tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = out / "cells"
    with started(command(out), tmp_path / "log") as process:
        wait_for(lambda: any(runs.glob("*/examination.json")), process, tmp_path / "log", 2 * START_LIMIT)
    (first,) = (path.parent for path in runs.glob("*/examination.json"))
    before = (first / "outcomes.arrow").stat().st_mtime_ns, (first / "adapter/adapter_model.safetensors").read_bytes()
    sampled = sorted(file.name for file in (out / "seeds/0/store/groups").iterdir())

    run(out)
    assert before == ((first / "outcomes.arrow").stat().st_mtime_ns, _adapter(first)), "a finished run is left alone"
    assert sorted(file.name for file in (out / "seeds/0/store/groups").iterdir()) == sampled
    _check_cells(out)
    _check_results(json.loads((out / "compare.json").read_text()))

    (out / "compare.json").unlink()
    assert "starting the services" not in run(out, [])  # what was asked for is there, and nothing is left to train
    _check_results(json.loads((out / "compare.json").read_text()))
    twins = run(out, ["--objectives", "brain:temperature=0.2"], status=2)
    assert "brain and brain:temperature=0.2 are the same objective" in twins


def _adapter(run: Path) -> bytes:
    return (run / "adapter/adapter_model.safetensors").read_bytes()


def _check_cells(out: Path) -> None:
    offline, online = out / "cells/dpo-sft-lr0.003-seed0-n4", out / "cells/brain-lr0.003-seed0-n4"
    shared = store_of(out / "seeds/0")
    assert len(groups_of_round(shared, 0)) == len(groups_of_round(shared, 1)) == 8
    assert groups_of_round(shared, 2), "groups of held-back prompts, for likelihoods"
    trained = {run: [row["group_ids"] for row in store_of(run).steps()] for run in (offline, online)}
    assert trained[offline][:2] == trained[online][:2], "the first round's groups are the same, in the same order"
    assert set(trained[offline][2] + trained[offline][3]) == set(groups_of_round(shared, 1))
    own = groups_of_round(store_of(online), 1)
    assert set(trained[online][2] + trained[online][3]) == set(own) and not set(own) & set(groups_of_round(shared, 1))
    assert store_of(offline).counts()["groups"] == 0, "nothing is sampled again"
    # One engine served both: it must have sampled from each run's own adapter.
    of_cells = [store_of(run, "evaluation") for run in (offline, online)]
    texts = [
        [outputs[0]["text"] for outputs in store.groups(list(store.group_ids))["outputs"].to_pylist()]
        for store in of_cells
    ]
    assert texts[0] != texts[1]


def _check_results(results: dict[str, Any]) -> None:
    assert list(results["methods"]) == ["dpo-sft", "brain"]
    for figures in results["methods"].values():
        assert 0 <= figures["train_rm_win_rate"] <= 100
        assert (figures["learning_rate"], figures["seeds"]) == (0.003, [0])
        assert np.isfinite(figures["kl_to_prior"])
    assert results["methods"]["brain"]["kl_to_prior"] != results["methods"]["dpo-sft"]["kl_to_prior"]
    prior = results["prior"]["examination"]
    drifts = [value for name, value in prior.items() if name.endswith("drift")]
    assert drifts == pytest.approx([0] * 4, abs=1e-3), "version 0 is the prior"
    assert [finding["claim"]["worse"] for finding in results["findings"]] == ["dpo-sft"]
