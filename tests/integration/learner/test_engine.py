"""DeepSpeed's engine against plain torch, for what is trained, ZeRO stages, ranks, offload, and across a kill."""

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

from brain_align.common.policies import PolicyRegistry
from brain_align.learner.trainer import Trainer
from tests.integration.learner.learner_process import learner_recipe, train
from tests.locations import ROOT
from tests.unit import tiny_models
from tests.unit.learner.plain_engine import PlainEngine

# The five processes spend most of their time on imports; a machine that is busy otherwise takes minutes.
pytestmark = pytest.mark.timeout(600)

STAGES = (0, 1, 2, 3)
LAST, SAVED = 6, 3
POLICIES = {
    "lora": {"adapter": {"r": 4, "alpha": 8}},
    "qlora": {"adapter": {"r": 4, "alpha": 8}, "quantization": "nf4"},
    "full": {"method": "full"},
    "full16": {"method": "full", "dtype": "bfloat16"},
    "lora16": {"adapter": {"r": 4, "alpha": 8}, "dtype": "bfloat16"},
}
EXACT = [*(f"{policy}-{stage}" for policy in ("lora", "full") for stage in STAGES), "qlora-2"]
"""In float32: what plain torch trains, to rounding."""
SIXTEEN = [f"full16-{stage}" for stage in (1, 2, 3)]
LORA_ON_SIXTEEN = [f"lora16-{stage}" for stage in (0, 2, 3)]
"""What recipes have by default: adapters in float32 on a model in bfloat16."""
OFFLOADED = ["lora-1-offload", "lora-2-offload", "full-3-offload"]
RECOMPUTED = ["lora-0-recompute", "full-3-recompute"]


def case(name):
    """The recipe's settings from "POLICY-STAGE[-offload|-recompute]"."""
    policy, stage, *rest = name.split("-")
    learner = {
        "zero_stage": int(stage),
        "offload_optimizer": "offload" in rest,
        "activation_checkpointing": "recompute" in rest,
    }
    return {"policy": POLICIES[policy], "learner": learner}


def runs(directory, kind, names, **settings):
    return [{"dir": str(directory / f"{kind}-{name}"), **case(name), **settings} for name in names]


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
                [sys.executable, "-m", "tests.integration.learner.learner_process", json.dumps(plan)],
                cwd=ROOT,
                env=os.environ | {name: str(value) for name, value in place.items()},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        processes.append((process, log, -signal.SIGKILL if die else 0))
    return processes


def finish(*spawned):
    processes = [entry for entries in spawned for entry in entries]
    try:
        for process, log, expected in processes:
            assert process.wait(timeout=400) == expected, log.read_text()[-4000:]
    finally:
        for process, *_ in processes:
            process.kill()


def moved(directory, kind, source, target, **settings):
    """A run that goes on, on another stage, from where `source` was saved."""
    shutil.copytree(directory / f"cut-{source}", directory / f"{kind}-{target}")
    return runs(directory, kind, [target], last=LAST, **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of all runs: KIND-CASE each.

    whole: never interrupted, but `spoil`ed before step 3; cut: killed after step 4, resumed
    from step 3; wide: on two ranks; moved and moved-wide: from another stage's checkpoint, on one rank and on two.
    """
    directory = tmp_path_factory.mktemp("learner")
    tiny_models.save(tiny_models.llama(), directory / "model")
    cut = ["lora-0", "lora-1", "lora-2", "lora-3", "full-2", *SIXTEEN, *LORA_ON_SIXTEEN]
    whole = EXACT + SIXTEEN + LORA_ON_SIXTEEN + OFFLOADED + RECOMPUTED
    finish(
        spawn(directory, runs(directory, "whole", whole, last=LAST, spoiled=3)),
        spawn(directory, runs(directory, "cut", cut, last=SAVED + 1, saved=SAVED), die=True),
    )
    for run in runs(directory, "cut", cut):
        shutil.rmtree(Path(run["dir"]) / "policies")  # published by the lost step
    alone = moved(directory, "moved", "lora-0", "lora-2-offload") + moved(directory, "moved", "lora-2", "lora-3")
    two = (
        moved(directory, "moved-wide", "lora-0", "lora-1")
        + moved(directory, "moved-wide", "full-2", "full-3")
        + moved(directory, "moved-wide", "full16-2", "full16-3")
    )
    wide = [*EXACT, "lora-3-recompute", "lora16-2", "lora16-3"]
    finish(
        spawn(directory, runs(directory, "cut", cut, last=LAST) + alone),
        spawn(directory, runs(directory, "wide", wide, last=LAST) + two, ranks=2),
    )
    return directory


@pytest.fixture(scope="module")
def plain(trained):
    """What plain torch trains on the same batches, by policy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for policy in ("lora", "qlora", "full"):
        trainer = Trainer(learner_recipe(trained / "model", POLICIES[policy]), trained / f"plain-{policy}", PlainEngine)
        trainer.start()
        train(trainer, LAST)
    torch.set_num_threads(threads)
    return {policy: weights(trained / f"plain-{policy}") for policy in ("lora", "qlora", "full")}


def weights(directory):
    (file,) = (directory / "policies/v000001").glob("*.safetensors")
    return {name: value.float() for name, value in load_file(file).items()}


def largest_difference(ours, theirs):
    """The largest difference within a tensor, relative to its largest element; lora_B starts at 0, as all biases do."""
    assert ours.keys() == theirs.keys()
    return max(((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()).item() for name in ours)


def metrics(directory, rank=0):
    rows = json.loads((directory / f"metrics-{rank}.json").read_text())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("name", EXACT + OFFLOADED + RECOMPUTED)
def test_deepspeed_trains_what_plain_adamw_trains(trained, plain, name):
    assert largest_difference(weights(trained / f"whole-{name}"), plain[name.split("-")[0]]) < 1e-5


@pytest.mark.parametrize("name", [*EXACT, "lora-3-recompute"])
def test_two_ranks_train_what_one_trains(trained, plain, name):
    assert largest_difference(weights(trained / f"wide-{name}"), plain[name.split("-")[0]]) < 1e-5


@pytest.mark.parametrize("name", [f"{kind}-{case}" for case in EXACT for kind in ("whole", "wide")])
def test_the_published_probe_is_the_policy_s_however_its_weights_are_shared_out(trained, plain, name):
    ours, theirs = (
        PolicyRegistry(trained / run / "policies").get(1).probe for run in (name, f"plain-{name.split('-')[1]}")
    )
    assert ours is not None
    assert theirs is not None
    assert ours.continuation == theirs.continuation
    assert ours.logprobs == pytest.approx(theirs.logprobs, abs=2e-4)


@pytest.mark.parametrize("name", ["lora-3", "full-3"])
def test_zero_3_partitions_frozen_weights_too(trained, name):
    held = json.loads((trained / f"wide-{name}/held-0.json").read_text())
    assert set(held.values()) == {0.5}


@pytest.mark.parametrize("name", ["full16-1", "full16-3"])
def test_bfloat16_rounds_weights_only_also_where_they_are_loaded_partitioned(trained, name):
    # At the first step the weights are those of the file; rotary frequencies in bfloat16 would change its third digit.
    first, reference = (metrics(trained / f"whole-{one}")[0]["loss"] for one in (name, "full16-2"))
    assert first == pytest.approx(reference, rel=1e-6)


def test_bfloat16_weights_have_a_float32_master_copy(trained, plain):
    # A step moves most weights by less than bfloat16 resolves: only a master copy adds such steps up.
    for name in SIXTEEN:
        assert largest_difference(weights(trained / f"whole-{name}"), plain["full"]) < 2**-7
    master = load_file(next((trained / "cut-full16-2/checkpoints").glob("*/parameters.safetensors")))
    assert {value.dtype for value in master.values()} == {torch.float32}
    values = master["weight/model.model.embed_tokens.weight"]
    assert not torch.equal(values, values.bfloat16().float())


@pytest.mark.parametrize("name", ["lora-0", "lora-1", "lora-2", "lora-3", "full-2", *SIXTEEN, *LORA_ON_SIXTEEN])
def test_a_killed_and_resumed_run_ends_with_the_same_bytes(trained, name):
    whole, cut = trained / f"whole-{name}", trained / f"cut-{name}"
    (file,) = (whole / "policies/v000001").glob("*.safetensors")
    assert (cut / file.relative_to(whole)).read_bytes() == file.read_bytes()
    assert metrics(cut) == metrics(whole)[SAVED:]


@pytest.mark.parametrize("name", EXACT)
def test_metrics_are_the_same_on_all_ranks_and_any_number_of_them(trained, name):
    wide = trained / f"wide-{name}"
    assert metrics(wide, rank=0) == metrics(wide, rank=1)
    for ours, theirs in zip(metrics(wide), metrics(trained / f"whole-{name}"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("run", ["moved-lora-2-offload", "moved-lora-3", "moved-wide-lora-1", "moved-wide-full-3"])
def test_a_checkpoint_resumes_on_another_stage_and_on_more_ranks(trained, plain, run):
    assert largest_difference(weights(trained / run), plain[run.split("-")[-2 if "offload" not in run else -3]]) < 1e-5


@pytest.mark.parametrize("run", ["whole-lora16-2", "whole-lora16-3", "wide-lora16-2", "wide-lora16-3"])
def test_adapters_on_a_bfloat16_model_are_trained_alike_by_all_stages(trained, run):
    ours, theirs = weights(trained / run), weights(trained / "whole-lora16-0")
    assert {value.dtype for value in load_file(next((trained / run).glob("policies/*/*.safetensors"))).values()} == {
        torch.float32
    }
    assert largest_difference(ours, theirs) < 0.05


def test_a_bfloat16_checkpoint_resumes_on_another_stage_and_on_more_ranks(trained):
    whole = weights(trained / "whole-full16-2")
    assert largest_difference(weights(trained / "moved-wide-full16-3"), whole) < 2**-7


def test_clipping_was_at_work(trained):
    norms = [row["grad_norm"] for row in metrics(trained / "whole-lora-0")]
    assert min(norms) < learner_recipe("model").learner.max_grad_norm < max(norms)
