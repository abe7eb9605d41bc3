"""The figures of `brain lab`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any

import torch

from brain_align.deploy.lab.training import Budget, train
from brain_align.deploy.lab.world import METHODS, OUTCOMES, World, draw, make_world
from brain_align.learner.objectives.catalogue import make_objective

COUNTS = (2, 4, 8, 16, 32, 64)
HALFWAY = 0.5
PROGRESS = (0.0, 0.25, HALFWAY, 0.75)
"""Places of the policy on the way from the prior to the posterior when its gradient is measured; q' = p throughout."""

_OUTPUTS = 1 << 16
"""The number of outputs drawn per figure, so that groups of any n cost the same."""


@dataclass(frozen=True)
class GradientFigures:
    """Figures of estimates of −∇_θ KL(posterior ‖ q_θ) = posterior − q_θ, where θ are the logits of the 64 outcomes."""

    variance: float  # the trace of their covariance
    relative_variance: float  # variance over the squared norm of their mean. Self-normalisation shrinks both.
    bias: float  # the norm of their mean less the exact gradient, as a share of the exact gradient's norm
    bias_error: float  # the average of `bias` that sampling alone would cause with this number of groups


@dataclass(frozen=True)
class Spread:
    """One figure over several worlds: its mean, lowest and highest value.

    For KLs it is the geometric mean: they differ by powers of ten, and the worst world would dominate a plain mean.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class LabFigures:
    """The laboratory's results."""

    seeds: tuple[int, ...]  # of the worlds; each also seeds the samples for its gradients
    budget: Budget  # of each training
    # KL(posterior ‖ q_θ) in nats, by method and n.  # each [rates, worlds, rounds + 1]
    divergences: dict[tuple[str, int], torch.Tensor]
    gradients: dict[tuple[float, str, int], list[GradientFigures]]  # by progress, method and n; one for each world

    def learning_rate(self, method: str, n: int) -> float:
        """Return the rate that ends nearest to the posterior, by the geometric mean over the worlds."""
        return self.budget.learning_rates[self._best(method, n)]

    def by_round(self, method: str, n: int) -> list[Spread]:
        """Return KL(posterior ‖ q_θ) in nats before the first and after each round, at the best rate."""
        by_world = self.divergences[method, n][self._best(method, n)]  # [worlds, rounds + 1]
        columns = _geometric_mean(by_world), by_world.amin(dim=0), by_world.amax(dim=0)
        return [Spread(*row) for row in torch.stack(columns, dim=-1).tolist()]

    def at_the_end(self, method: str, n: int) -> Spread:
        """Return KL(posterior ‖ q_θ) in nats after the last round, at the best rate."""
        return self.by_round(method, n)[-1]

    def gradient(self, field: str, progress: float, method: str, n: int) -> Spread:
        """Return one field of `GradientFigures` over the worlds."""
        of_worlds = [vars(figures)[field] for figures in self.gradients[progress, method, n]]
        return Spread(fmean(of_worlds), min(of_worlds), max(of_worlds))

    def worlds_below(self, field: str, progress: float, other: str, n: int) -> int:
        """Return in how many worlds a field of `GradientFigures` is lower for BRAIn than for another method."""
        pairs = zip(self.gradients[progress, "brain", n], self.gradients[progress, other, n], strict=True)
        return sum(vars(ours)[field] < vars(theirs)[field] for ours, theirs in pairs)

    def as_json(self) -> dict[str, Any]:
        """Return the contents of lab.json, which docs/lab.md explains."""
        return {
            "seeds": self.seeds,
            "outcomes": OUTCOMES,
            "budget": asdict(self.budget),
            **_mean_and_range("kl_posterior_policy", self.at_the_end),
            "kl_posterior_policy_by_round": _by_method_and_n(
                lambda method, n: [spread.mean for spread in self.by_round(method, n)]
            ),
            "learning_rate": _by_method_and_n(self.learning_rate),
            **_mean_and_range("gradient_variance", partial(self.gradient, "variance", 0.0)),
            **_mean_and_range("gradient_variance_halfway", partial(self.gradient, "variance", HALFWAY)),
            "trainings": self._trainings(),
            "gradients": self._gradients(),
            "brain_below": self._brain_below(),
        }

    def _best(self, method: str, n: int) -> int:
        at_the_end = _geometric_mean(self.divergences[method, n])[:, -1]
        return int(at_the_end.nan_to_num(math.inf).argmin())  # a rate that diverges is not the best

    def _trainings(self) -> list[dict[str, Any]]:
        return [
            {"method": method, "n": n, "learning_rate": rate, "kl_posterior_policy": by_world}
            for (method, n), divergences in self.divergences.items()
            for rate, by_world in zip(self.budget.learning_rates, divergences[:, :, -1].tolist(), strict=True)
        ]

    def _gradients(self) -> list[dict[str, Any]]:
        return [
            {"progress": progress, "method": method, "n": n}
            | {field.name: [vars(figures)[field.name] for figures in by_world] for field in fields(GradientFigures)}
            for (progress, method, n), by_world in self.gradients.items()
        ]

    def _brain_below(self) -> list[dict[str, Any]]:
        return [
            {"progress": progress, "other": other, "n": n}
            | {field: self.worlds_below(field, progress, other, n) for field in ("variance", "relative_variance")}
            for progress, other, n in product(PROGRESS, METHODS, COUNTS)
            if other != "brain"
        ]


def measure(seeds: Sequence[int], budget: Budget) -> LabFigures:
    """Train with every method, and measure every method's gradients."""
    worlds = [make_world(seed) for seed in seeds]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return LabFigures(
        seeds=tuple(seeds),
        budget=budget,
        divergences={(method, n): train(worlds, method, n, budget, seeds[0]) for method, n in product(METHODS, COUNTS)},
        gradients={
            (progress, method, n): [
                gradient_figures(world, method, n, world.log_policy(progress), world.log_prior, generator)
                for world, generator in zip(worlds, generators, strict=True)
            ]
            for progress, method, n in product(PROGRESS, METHODS, COUNTS)
        },
    )


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


def _geometric_mean(divergences: torch.Tensor) -> torch.Tensor:
    """Return the geometric mean over the worlds.  # [..., worlds, rounds + 1] -> [..., rounds + 1]."""
    return divergences.log().mean(dim=-2).exp()


def _mean_and_range(name: str, spread: Callable[[str, int], Spread]) -> dict[str, Any]:
    return {
        name: _by_method_and_n(lambda method, n: spread(method, n).mean),
        f"{name}_range": _by_method_and_n(lambda method, n: [spread(method, n).low, spread(method, n).high]),
    }


def _by_method_and_n(value: Callable[[str, int], Any]) -> dict[str, dict[str, Any]]:
    return {method: {str(n): value(method, n) for n in COUNTS} for method in METHODS}
