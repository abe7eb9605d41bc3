"""Variance and bias of the gradient that a method estimates from one group of n outputs."""

from dataclasses import dataclass

import torch

from brain_align.deploy.lab.world import METHODS, OUTCOMES, World, draw
from brain_align.learner.objectives.catalogue import make_objective

_OUTPUTS = 1 << 16
"""The number of outputs drawn per figure, so that groups of any n cost the same."""


@dataclass(frozen=True)
class GradientFigures:
    """Figures of estimates of −∇_θ KL(posterior ‖ q_θ) = posterior − q_θ, where θ are the logits of the 64 outcomes."""

    variance: float  # the trace of their covariance
    relative_variance: float  # variance over the squared norm of their mean. Self-normalisation shrinks both.
    bias: float  # the norm of their mean less the exact gradient, as a share of the exact gradient's norm
    bias_error: float  # the average of `bias` that sampling alone would cause with this number of groups


def gradient_figures(
    world: World, method: str, n: int, log_policy: torch.Tensor, log_proposal: torch.Tensor, generator: torch.Generator
) -> GradientFigures:
    """Measure a method's estimates at log q_θ [64], from groups of n outputs that are drawn from log q' [64]."""
    outcomes = draw(log_proposal, _OUTPUTS // n, n, generator)
    estimates = _estimates(world, method, outcomes, log_policy, log_proposal)
    mean = estimates.mean(dim=0)
    variance = (estimates - mean).square().sum(dim=1).mean()
    exact = world.log_posterior.exp() - log_policy.exp()
    return GradientFigures(
        variance=variance.item(),
        relative_variance=(variance / mean.square().sum()).item(),
        bias=((mean - exact).norm() / exact.norm()).item(),
        bias_error=((variance / len(estimates)).sqrt() / exact.norm()).item(),
    )


def _estimates(
    world: World, method: str, outcomes: torch.Tensor, log_policy: torch.Tensor, log_proposal: torch.Tensor
) -> torch.Tensor:
    """Return each group's ascent direction in θ.  # [groups, n] -> [groups, 64]."""
    values = world.groups(outcomes, log_policy, log_proposal, world.log_normaliser)
    leaf = values.policy_logprobs.requires_grad_()
    losses = make_objective(METHODS[method]).losses(values)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)  # a group's loss depends on that group alone
    weights = -gradient  # of ∇ log q_θ(y_i), which is the indicator of y_i less q_θ
    direct = torch.zeros(len(outcomes), OUTCOMES, dtype=weights.dtype).scatter_add_(1, outcomes, weights)
    return direct - weights.sum(dim=1, keepdim=True) * log_policy.exp()
