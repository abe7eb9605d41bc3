"""Algorithm 1 on enumerable toy problems, with the real losses, measured by the exact KL to the posterior."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from brain_align.deploy.lab.world import METHODS, World, draw, side_by_side
from brain_align.learner.objectives.catalogue import make_objective


@dataclass(frozen=True)
class Budget:
    """The same for every method and n."""

    rounds: int = 20  # proposal updates, e
    updates: int = 20  # optimiser steps per round, k
    groups: int = 16  # per step, all of the world's one prompt
    # Adam's initial rates, all of which are tried; they fall linearly to 0.
    learning_rates: tuple[float, ...] = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)


def train(worlds: Sequence[World], method: str, n: int, budget: Budget, seed: int) -> torch.Tensor:
    """Train the 64 logits of policies that start as the prior, with groups of n outputs.

    There is one training per world and learning rate. All run as one batch, since a single one is mostly overhead; they
    do not affect each other. The result is the exact KL(posterior ‖ q_θ) in nats before the first and after each round.
    # [rates, worlds, rounds + 1]
    """
    generator = torch.Generator().manual_seed(seed)
    objective = make_objective(METHODS[method])
    world = side_by_side(worlds, len(budget.learning_rates))
    logits = [log_prior.clone().requires_grad_() for log_prior in world.log_prior]  # by rate, [worlds, 64] each
    optimizer = torch.optim.Adam(
        [{"params": [leaf], "lr": rate} for leaf, rate in zip(logits, budget.learning_rates, strict=True)]
    )
    steps = budget.rounds * budget.updates
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
    divergences = [world.kl_to_posterior(world.log_prior)]
    log_sum = torch.full_like(world.log_normaliser, -math.inf)  # of all P/q' seen, for their running mean
    for already in range(0, steps, budget.updates):
        log_proposal = torch.stack(logits).log_softmax(-1).detach()  # line 21: q' <- q_θ
        for step in range(already + 1, already + budget.updates + 1):
            outcomes = draw(log_proposal, budget.groups, n, generator)
            log_sum = torch.logaddexp(log_sum, world.log_importance(outcomes, log_proposal).logsumexp(-1))
            log_normaliser = log_sum - math.log(step * budget.groups * n)
            values = world.groups(outcomes, torch.stack(logits).log_softmax(-1), log_proposal, log_normaliser)
            optimizer.zero_grad()
            (objective.losses(values).sum() / budget.groups).backward()  # the mean of each training's groups
            optimizer.step()
            schedule.step()
        divergences.append(world.kl_to_posterior(torch.stack(logits).log_softmax(-1).detach()))
    return torch.stack(divergences, dim=-1)
