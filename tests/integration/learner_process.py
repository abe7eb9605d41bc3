"""One rank of a learner on DeepSpeed, as a process: trains the runs that it is told, and dies by SIGKILL if told so.

    python -m tests.integration.learner_process '{"model": DIR, "runs": [{"dir": DIR, "stage": 0, "last": 6}], …}'

Rank and rendezvous stand in the environment.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from common.config.recipe import Recipe
from learner.trainer import Trainer
from tests.unit.factories import recipe_settings
from tests.unit.train_batches import gappy_batch


def learner_recipe(model, stage=0):
    """Clipping, weight decay and warm-up at work, and groups that do not fit into one forward pass."""
    return Recipe.model_validate(
        recipe_settings(
            policy={"model": str(model), "dtype": "float32", "adapter": {"r": 4, "alpha": 8}},
            learner={
                "zero_stage": stage,
                "learning_rate": 1e-3,
                "weight_decay": 0.1,
                "warmup_steps": 3,
                "max_grad_norm": 5.0,
                "micro_batch_tokens": 20,
            },
        )
    )


def train(trainer, last, saved=None):
    """Train up to `last`, with a checkpoint at `saved`, and publish the result; returns each step's metrics."""
    metrics = []
    for step in range(trainer.step + 1, last + 1):
        metrics.append(trainer.train_step(step, gappy_batch(step)).metrics)
        if step == saved:
            trainer.save(step)
    trainer.publish(1, last)
    return metrics


def main(model, runs, *, die=False):
    from learner.engine import DeepSpeedEngine, join_ranks

    torch.set_num_threads(1)
    join_ranks()
    for run in runs:
        trainer = Trainer(learner_recipe(model, run["stage"]), Path(run["dir"]), DeepSpeedEngine)
        trainer.start()
        metrics = train(trainer, run["last"], run.get("saved"))
        Path(run["dir"], f"metrics-{os.environ['RANK']}.json").write_text(json.dumps(metrics))
    if die:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
