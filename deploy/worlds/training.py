"""The training loop of all small models of a toy task, and the record of what its preparation takes."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerFast

from brain_align.deploy.worlds.language_model import Example
from brain_align.deploy.worlds.packing import batches_by_length
from brain_align.deploy.worlds.reward_model import EncodedPreferences

Progress = Callable[[str], None]
_SECONDS_BETWEEN_REPORTS = 5.0


class Recorder:
    """Reports progress line by line, and records the wall-clock seconds of each stage."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the preparation."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


@dataclass(frozen=True)
class Preparation:
    """Directory, tokenizer, random numbers and recorder that all models of one toy task are made with."""

    world: Path
    tokenizer: PreTrainedTokenizerFast
    random: Random
    recorder: Recorder


@dataclass(frozen=True)
class OptimiserPlan:
    """Number of steps and AdamW settings of one training."""

    steps: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup: float = 0.05


Item = TypeVar("Item", Example, EncodedPreferences)


def optimise(
    model: torch.nn.Module,
    items: Sequence[Item],
    batch_loss: Callable[[list[Item]], torch.Tensor],
    plan: OptimiserPlan,
    batch_tokens: int,
    random: Random,
    label: str,
    progress: Progress,
) -> float:
    """Train a model in place, epoch after epoch: linear warm-up, then a cosine decay to a tenth of the learning rate.

    The batches are shuffled and have at most `batch_tokens` padded tokens. `progress` gets a line that begins with
    `label` every few seconds. The model is left in evaluation mode; the mean loss over the last tenth of the steps is
    returned.
    """
    lengths = [len(item.group) for item in items]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan))
    model.train()
    history: list[float] = []
    reported = time.monotonic()
    for batch in islice(_epochs(lengths, batch_tokens, random), plan.steps):
        loss = batch_loss([items[index] for index in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        history.append(loss.item())
        if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            progress(f"{label}: step {len(history)}/{plan.steps}, loss {_mean_of_last(history):.3f}")
    model.eval()
    return _mean_of_last(history)


def _epochs(lengths: Sequence[int], batch_tokens: int, random: Random) -> Iterator[list[int]]:
    while True:
        yield from batches_by_length(lengths, batch_tokens, random)


def _rate(step: int, plan: OptimiserPlan) -> float:
    """Return the factor of the learning rate at a step (0-based)."""
    warmup = max(1, round(plan.warmup * plan.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, plan.steps - warmup)))


def _mean_of_last(history: list[float]) -> float:
    last = history[-max(1, len(history) // 10) :]
    return sum(last) / len(last)
