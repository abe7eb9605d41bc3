"""TRL's side of a cell, in a process of its own: `python -m tests.bench.peer_cases.trl_side TASK LAUNCHED`.

GRPOTrainer or RLOOTrainer as a careful user would start them on a CPU: LoRA of the same shape through `peft_config`,
the same reward model in this process, all cores, no gradient checkpointing, no logging, a constant learning rate.
"""

import json
import pickle
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, logging
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from brain_align.common.config.recipe import Recipe
from brain_align.deploy.api.scorers import LoadedScorer
from brain_align.scorer.catalogue import build_scorer
from tests.bench.peer_cases.cases import GRPO
from tests.bench.peer_cases.trl_task import Task

_BETA = 0.05  # RLOO's default; GRPO's is 0, with which it runs away sooner


class Clock:
    """Seconds since training began, without those in which it was stopped, and what was done in them."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.stopped = 0.0
        self.outputs = self.tokens = 0
        self.seconds = {"sampling": 0.0, "scoring": 0.0}

    def now(self) -> float:
        return time.perf_counter() - self.began - self.stopped

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[stage] += time.perf_counter() - begin

        return call


class Snapshots(TrainerCallback):
    """Writes the adapter every few steps, with the clock stopped."""

    def __init__(self, clock: Clock, every: int, folder: Path) -> None:
        self._clock, self._every, self._folder = clock, every, folder
        self.points: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.global_step % self._every and state.global_step != state.max_steps:
            return
        seconds, begin = self._clock.now(), time.perf_counter()
        target = self._folder / f"step-{state.global_step:05d}"
        named["model"].save_pretrained(str(target))
        self.points.append(
            {
                "version": state.global_step,
                "seconds": seconds,
                "outputs": self._clock.outputs,
                "tokens": self._clock.tokens,
                "adapter": str(target.relative_to(self._folder.parent)),
            }
        )
        self._clock.stopped += time.perf_counter() - begin


def reward_function(recipe: Recipe, clock: Clock) -> Callable[..., list[float]]:
    """Return our scorer as TRL's reward function; it also counts what was sampled."""
    name = recipe.objective.reward
    score = LoadedScorer(build_scorer(recipe.scorers[name], name, recipe.policy, Path()))

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        clock.outputs += len(completions)
        clock.tokens += sum(map(len, completion_ids))
        return score(prompts, completions)

    reward.__name__ = "reward"
    return clock.timed("scoring", reward)


def make_trainer(task: Task, clock: Clock, snapshots: Snapshots) -> Any:
    """Make the trainer of a cell."""
    cell, recipe = task.cell, task.recipe
    adapter, case, n = recipe.policy.adapter, cell.case, recipe.sampling.n
    assert adapter is not None and cell.learning_rate is not None, "TRL's cells have rates, and cases train adapters"
    tokenizer = AutoTokenizer.from_pretrained(recipe.policy.model)
    trainer_class, config_class = (GRPOTrainer, GRPOConfig) if cell.method == GRPO else (RLOOTrainer, RLOOConfig)
    rows = case.prompts * n
    micro_batch = min(case.micro_batch, rows)
    settings = config_class(
        output_dir=str(cell.work / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, seed=cell.seed,
        per_device_train_batch_size=micro_batch, gradient_accumulation_steps=rows // micro_batch,
        num_generations=n, max_completion_length=recipe.sampling.max_tokens, temperature=1.0, beta=_BETA,
        learning_rate=cell.learning_rate, lr_scheduler_type="constant", max_steps=cell.trl_steps,
        logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer: Any = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(recipe.policy.model, dtype=getattr(torch, recipe.policy.dtype)),
        reward_funcs=reward_function(recipe, clock),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": task.texts}),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=adapter.r, lora_alpha=adapter.alpha, target_modules=list(adapter.targets), task_type="CAUSAL_LM"
        ),
        callbacks=[snapshots],
    )
    trainer._generate = clock.timed("sampling", trainer._generate)
    return trainer


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    task: Task = pickle.loads(Path(sys.argv[1]).read_bytes())
    cell = task.cell
    launched = float(sys.argv[2])
    clock = Clock()
    snapshots = Snapshots(clock, 1 if cell.smoke else cell.case.every, cell.work / "adapters")
    trainer = make_trainer(task, clock, snapshots)
    startup = time.time() - launched
    clock.began = time.perf_counter()
    trainer.train()
    total = clock.now()
    stages = {**clock.seconds, "training": total - sum(clock.seconds.values())}
    figures = {
        "startup_seconds": startup,
        "training_seconds": total,
        "stages": stages,
        "threads": torch.get_num_threads(),
        "points": snapshots.points,
    }
    (cell.work / "trained.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
