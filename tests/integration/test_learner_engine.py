"""DeepSpeed's engine against plain torch, across a kill, ZeRO stages and ranks."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learner.trainer import Trainer
from tests.integration.learner_process import learner_recipe, train
from tests.unit import tiny_models
from tests.unit.plain_engine import PlainEngine

# The five processes spend most of their time on imports; a machine that is busy otherwise takes minutes.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]
STAGES = (0, 1, 2)
LAST, SAVED = 6, 3
ADAPTER = Path("policies/v000001/adapter_model.safetensors")


def spawn(directory, runs, *, ranks=1, die=False):
    """Start the processes of one learner; their output goes to a file each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plan = {"model": str(directory / "model"), "runs": runs, "die": die}
    processes = []
    for rank in range(ranks):
        place = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "RANK": rank,
            "WORLD_SIZE": ranks,
            "LOCAL_RANK": 0,
        }
        log = directory / f"{Path(runs[0]['dir']).name}-{rank}.log"
        with open(log, "w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.learner_process", json.dumps(plan)],
                cwd=ROOT,
                env=os.environ | {name: str(value) for name, value in place.items()},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        processes.append((process, log, -signal.SIGKILL if die else 0))
    return processes


def finish(*spawned):
    for process, log, expected in (entry for processes in spawned for entry in processes):
        try:
            assert process.wait(timeout=250) == expected, log.read_text()[-4000:]
        finally:
            process.kill()


def runs(directory, name, stages=STAGES, **settings):
    return [{"dir": str(directory / f"{name}-{stage}"), "stage": stage, **settings} for stage in stages]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of all runs: NAME-STAGE each.

    whole: never interrupted; cut: killed after step 4, resumed from step 3; wide: on two ranks; moved and
    moved-wide: from the checkpoint of cut-0, on another stage, and on two ranks.
    """
    directory = tmp_path_factory.mktemp("learner")
    tiny_models.save(tiny_models.llama(), directory / "model")
    finish(
        spawn(directory, runs(directory, "whole", last=LAST)),
        spawn(directory, runs(directory, "cut", last=SAVED + 1, saved=SAVED), die=True),
    )
    for run in runs(directory, "cut"):
        shutil.rmtree(Path(run["dir"]) / "policies")  # published by the lost step
    moved = runs(directory, "moved", stages=[2], last=LAST)
    moved_wide = runs(directory, "moved-wide", stages=[1], last=LAST)
    for run in moved + moved_wide:
        shutil.copytree(directory / "cut-0", run["dir"])
    finish(
        spawn(directory, runs(directory, "cut", last=LAST) + moved),
        spawn(directory, runs(directory, "wide", last=LAST) + moved_wide, ranks=2),
    )
    return directory


@pytest.fixture(scope="module")
def plain(trained):
    """The adapter that plain torch trains on the same batches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trainer = Trainer(learner_recipe(trained / "model"), trained / "plain", PlainEngine)
    trainer.start()
    train(trainer, LAST)
    torch.set_num_threads(threads)
    return load_file(trained / "plain" / ADAPTER)


def largest_difference(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def metrics(directory, rank=0):
    rows = json.loads((directory / f"metrics-{rank}.json").read_text())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_trains_what_plain_adamw_trains(trained, plain, stage):
    adapter = load_file(trained / f"whole-{stage}" / ADAPTER)
    assert largest_difference(adapter, plain) < 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_and_resumed_run_ends_with_the_same_bytes(trained, stage):
    whole, cut = trained / f"whole-{stage}", trained / f"cut-{stage}"
    assert (cut / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    assert metrics(cut) == metrics(whole)[SAVED:]


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_what_one_trains(trained, plain, stage):
    assert largest_difference(load_file(trained / f"wide-{stage}" / ADAPTER), plain) < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_metrics_are_the_same_on_all_ranks_and_any_number_of_them(trained, stage):
    wide = trained / f"wide-{stage}"
    assert metrics(wide, rank=0) == metrics(wide, rank=1)
    for ours, theirs in zip(metrics(wide), metrics(trained / "whole-0"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("run", ["moved-2", "moved-wide-1"])
def test_a_checkpoint_resumes_on_another_stage_and_on_more_ranks(trained, plain, run):
    assert largest_difference(load_file(trained / run / ADAPTER), plain) < 1e-5


def test_clipping_was_at_work(trained):
    norms = [row["grad_norm"] for row in metrics(trained / "whole-0")]
    assert min(norms) < learner_recipe("model").learner.max_grad_norm < max(norms)
