"""Enumerable toy problems: one prompt with 64 outcomes, known prior and rewards, and hence a known posterior."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from brain_align.common.config.objective_sections import BrainSection, ObjectiveBase, PolicyGradientSection
from brain_align.learner.objectives.values import GroupValues

OUTCOMES = 64
METHODS: dict[str, ObjectiveBase] = {
    "brain": BrainSection(name="brain"),
    "brain-no-baseline": BrainSection(name="brain-no-baseline"),
    "dpg": PolicyGradientSection(name="dpg"),
    "gdc++": PolicyGradientSection(name="gdc++"),
}
"""The methods that aim at the posterior, with the paper's goodness model (Bradley–Terry, γ = 1)."""


@dataclass(frozen=True)
class World:
    """Distributions over the outcomes, as log-probabilities in nats; or several worlds, in the leading dimensions."""

    log_prior: torch.Tensor  # log p(y).  # [..., 64] float64
    rewards: torch.Tensor  # r(y), standard normal: a spread of 1.  # [..., 64] float64

    @property
    def log_normaliser(self) -> torch.Tensor:
        """The normaliser log Z = log Σ_y p(y) e^r(y).  # [...]."""
        return (self.log_prior + self.rewards).logsumexp(-1)

    @property
    def log_posterior(self) -> torch.Tensor:
        """The posterior log p(y|G=1) = log p(y) + r(y) − log Z.  # [..., 64]."""
        return self.log_prior + self.rewards - self.log_normaliser[..., None]

    def log_policy(self, progress: float) -> torch.Tensor:
        """Return a policy from the prior (0) to the posterior (1): p·exp(progress · r), normalised.  # [..., 64]."""
        return (self.log_prior + progress * self.rewards).log_softmax(-1)

    def kl_to_posterior(self, log_policy: torch.Tensor) -> torch.Tensor:
        """Return the exact KL(posterior ‖ q_θ) in nats.  # [..., 64] -> [...]."""
        ratios = self.log_posterior - log_policy
        # Σ q_θ − Σ posterior, which is 0, is added: without it, 1e-16 and less would be rounding, of either sign.
        return (self.log_posterior.exp() * (torch.expm1(-ratios) + ratios)).sum(-1)

    def log_importance(self, outcomes: torch.Tensor, log_proposal: torch.Tensor) -> torch.Tensor:
        """Return log P/q' of sampled outcomes [..., b, n]; the mean of its exponential estimates Z.  # [..., b·n]."""
        return (self.log_prior + self.rewards - log_proposal).gather(-1, outcomes.flatten(-2))

    def groups(
        self, outcomes: torch.Tensor, log_policy: torch.Tensor, log_proposal: torch.Tensor, log_normaliser: torch.Tensor
    ) -> GroupValues:
        """Return the values that an objective computes with, for sampled outcomes of all worlds in sequence.

        An objective knows one log Z, and here each world has its own: the prior comes divided by it, so that P/(Z q')
        is what dpg and gdc++ make of it with their Z at 1. BRAIn's weights are the same with any. The outcomes
        [..., b, n] int64 are drawn from q' [..., 64]; log q_θ [..., 64] has its gradient; log Z [...] may be estimated.
        """
        n = outcomes.shape[-1]
        flat = outcomes.flatten(-2)  # [..., b·n]
        there = torch.ones_like(outcomes, dtype=torch.bool).view(-1, n)
        return GroupValues(
            policy_logprobs=log_policy.gather(-1, flat).view(-1, n),
            prior_logprobs=(self.log_prior - log_normaliser[..., None]).gather(-1, flat).view(-1, n),
            proposal_logprobs=log_proposal.gather(-1, flat).view(-1, n),
            rewards=self.rewards.gather(-1, flat).view(-1, n),
            complete=there,
            valid=there,
            lengths=torch.ones_like(there, dtype=torch.int64),
            gold_logprobs=torch.full((len(there),), torch.nan, dtype=torch.float64),
            gold_lengths=torch.ones(len(there), dtype=torch.int64),
            seeds=torch.zeros(len(there), dtype=torch.int64),
            log_normaliser=0.0,
        )


def make_world(seed: int) -> World:
    """Draw a world's prior logits and rewards from a standard normal."""
    generator = torch.Generator().manual_seed(seed)
    logits, rewards = torch.randn(2, OUTCOMES, generator=generator, dtype=torch.float64)
    return World(logits.log_softmax(0), rewards)


def side_by_side(worlds: Sequence[World], copies: int) -> World:
    """Stack copies of worlds.  # each [64] -> [copies, worlds, 64]."""
    log_prior = torch.stack([world.log_prior for world in worlds])
    rewards = torch.stack([world.rewards for world in worlds])
    return World(log_prior.repeat(copies, 1, 1), rewards.repeat(copies, 1, 1))


def draw(log_proposal: torch.Tensor, groups: int, n: int, generator: torch.Generator) -> torch.Tensor:
    """Draw the outcomes of groups from a proposal.  # [..., 64] -> [..., groups, n] int64."""
    proposals = log_proposal.exp().view(-1, OUTCOMES)
    outcomes = torch.multinomial(proposals, groups * n, replacement=True, generator=generator)
    return outcomes.view(*log_proposal.shape[:-1], groups, n)
