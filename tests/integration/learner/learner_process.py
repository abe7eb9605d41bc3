"""One rank of a learner on DeepSpeed, as a process: trains the runs that it is told, and dies by SIGKILL if told so.

    python -m … '{"model": DIR, "runs": [{"dir": DIR, "last": 6, "learner": {…}}], …}'

Rank and rendezvous stand in the environment.
"""

import json
import math
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from brain_align.common.config.recipe import Recipe
from brain_align.common.nn.logprobs import request_of
from brain_align.learner.trainer import Trainer
from tests.unit.factories import recipe_settings
from tests.unit.learner.train_batches import gappy_batch

FIRST_LAYER = {"lora": "model.base_model.model.model.layers.0", "full": "model.model.layers.0"}


def learner_recipe(model, policy=(), learner=()):
    """Clipping, weight decay and warm-up at work, and groups that do not fit into one forward pass."""
    lora = {"adapter": {"r": 4, "alpha": 8}} if dict(policy).get("method") != "full" else {}
    return Recipe.model_validate(
        recipe_settings(
            policy={"model": str(model), "dtype": "float32"} | lora | dict(policy),
            learner={
                "learning_rate": 1e-3,
                "weight_decay": 0.1,
                "warmup_steps": 3,
                "max_grad_norm": 5.0,
                "micro_batch_tokens": 20,
            }
            | dict(learner),
        )
    )


class BrokenOff(Exception):
    pass


def spoil(trainer):
    """A gradient that is not finite, and a pass that ends in its middle: nothing may change."""
    engine, request = trainer._engine, request_of([3, 4], [[7, 8], [9]])
    engine.backward(engine.logprobs([request]).sum() * torch.nan, last=True)
    assert not math.isfinite(engine.step(1.0))
    if engine.can_discard:
        layer = trainer._policy.get_submodule(FIRST_LAYER[trainer._recipe.policy.method])
        handle = layer.register_full_backward_pre_hook(fail)
        with pytest.raises(BrokenOff):
            engine.backward(engine.logprobs([request]).sum(), last=True)
        handle.remove()
        engine.discard_gradient()


def fail(*_arguments):
    raise BrokenOff


def train(trainer, last, saved=None, spoiled=None):
    """Train up to `last`, with a checkpoint at `saved`, and publish the result; returns each step's metrics."""
    metrics = []
    for step in range(trainer.step + 1, last + 1):
        if step == spoiled:
            spoil(trainer)
        metrics.append(trainer.train_step(step, gappy_batch(step)).metrics)
        if step == saved:
            trainer.save(step)
    trainer.publish(1, last)
    return metrics


def held_here(parameter):
    """The share of a parameter's elements that lie on this rank between steps."""
    return parameter.ds_tensor.numel() / parameter.ds_numel if hasattr(parameter, "ds_tensor") else 1.0


def main(model, runs, *, die=False):
    from brain_align.learner.engine import DeepSpeedEngine, join_ranks

    torch.set_num_threads(1)
    join_ranks("127.0.0.1")
    for run in runs:
        recipe = learner_recipe(model, run.get("policy", {}), run["learner"])
        trainer = Trainer(recipe, Path(run["dir"]), DeepSpeedEngine)
        trainer.start()
        metrics = train(trainer, run["last"], run.get("saved"), run.get("spoiled"))
        held = {name: held_here(value) for name, value in trainer._policy.named_parameters()}
        Path(run["dir"], f"held-{os.environ['RANK']}.json").write_text(json.dumps(held))
        Path(run["dir"], f"metrics-{os.environ['RANK']}.json").write_text(json.dumps(metrics))
    if die:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
