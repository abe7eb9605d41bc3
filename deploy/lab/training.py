"""Algorithm 1 in the enumerable world, with the real objectives: how near the policy comes to the posterior."""

from dataclasses import dataclass

import torch

from deploy.lab.world import METHODS, World, draw
from learner.objectives.catalogue import make_objective


@dataclass(frozen=True)
class Budget:
    """The same for every method and n.

    Attributes:
        rounds: proposal updates, e.
        updates: optimiser steps a round, k.
        groups: a step's; each is of the world's one prompt.
        learning_rate: Adam's at first; it falls linearly to 0.
    """

    rounds: int = 20
    updates: int = 20
    groups: int = 16
    learning_rate: float = 0.05


def train(world: World, method: str, n: int, budget: Budget, seed: int) -> list[float]:
    """Train the 64 logits of a policy that starts as the prior, with groups of n outputs.

    Returns:
        KL(posterior ‖ q_θ) in nats before the first and after each round, exactly.  # rounds + 1
    """
    generator = torch.Generator().manual_seed(seed)
    objective = make_objective(METHODS[method])
    logits = world.log_prior.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=budget.learning_rate)
    steps = budget.rounds * budget.updates
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
    divergences = [world.kl_to_posterior(world.log_prior)]
    for _ in range(budget.rounds):
        log_proposal = logits.log_softmax(0).detach()  # line 21: q' <- q_θ
        for _ in range(budget.updates):
            outcomes = draw(log_proposal, budget.groups, n, generator)
            values = world.groups(outcomes, logits.log_softmax(0), log_proposal)
            objective.observe(values)
            optimizer.zero_grad()
            objective.losses(values).mean().backward()
            optimizer.step()
            schedule.step()
        divergences.append(world.kl_to_posterior(logits.log_softmax(0).detach()))
    return divergences
