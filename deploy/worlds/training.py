"""The optimiser loop that all small models of a world are trained with."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

Progress = Callable[[str], None]
_SECONDS_BETWEEN_REPORTS = 5.0


@dataclass(frozen=True)
class Plan:
    """How long and how fast a model learns."""

    steps: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup: float = 0.05


def optimise(
    model: torch.nn.Module,
    losses: Iterable[torch.Tensor],
    plan: Plan,
    label: str,
    progress: Progress,
) -> float:
    """Take one AdamW step on each loss; linear warm-up, then a cosine down to a tenth.

    Args:
        model: what is trained, in place.
        losses: yields scalar losses, each computed when it is asked for; at least `plan.steps` of them.
        plan: number of steps and learning rate.
        label: what the progress lines call it.
        progress: called every few seconds with one line.

    Returns:
        The mean loss over the last tenth of the steps.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan))
    model.train()
    history: list[float] = []
    reported = time.monotonic()
    for loss in losses:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        history.append(loss.item())
        if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            progress(f"{label}: step {len(history)}/{plan.steps}, loss {_mean_of_last(history):.3f}")
        if len(history) == plan.steps:
            break
    model.eval()
    return _mean_of_last(history)


def _rate(step: int, plan: Plan) -> float:
    warmup = max(1, round(plan.warmup * plan.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, plan.steps - warmup)))


def _mean_of_last(history: list[float]) -> float:
    last = history[-max(1, len(history) // 10) :]
    return sum(last) / len(last)
