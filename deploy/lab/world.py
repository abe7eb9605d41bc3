"""A world that can be enumerated: one prompt, 64 outcomes, known prior and rewards, and hence a known posterior."""

from dataclasses import dataclass

import torch

from common.config.objective_sections import BrainSection, ObjectiveBase, PolicyGradientSection
from learner.objectives.catalogue import make_objective
from learner.objectives.objective import Objective
from learner.objectives.policy_gradients import RunningMean
from learner.objectives.values import GroupValues

OUTCOMES = 64
METHODS: dict[str, ObjectiveBase] = {
    "brain": BrainSection(name="brain"),
    "brain-no-baseline": BrainSection(name="brain-no-baseline"),
    "dpg": PolicyGradientSection(name="dpg"),
    "gdc++": PolicyGradientSection(name="gdc++"),
}
"""The methods that aim at the posterior, with the paper's goodness model (Bradley–Terry, γ = 1)."""

_SEEN = 1 << 40  # outputs: with so many, a running mean of Z does not move any more


@dataclass(frozen=True)
class World:
    """Distributions over the outcomes, as log-probabilities in nats.

    Attributes:
        log_prior: log p(y).  # [64] float64
        rewards: r(y), standard normal: a spread of 1.  # [64] float64
    """

    log_prior: torch.Tensor
    rewards: torch.Tensor

    @property
    def log_partition(self) -> float:
        """Log Z = log Σ_y p(y) e^r(y)."""
        return (self.log_prior + self.rewards).logsumexp(0).item()

    @property
    def log_posterior(self) -> torch.Tensor:
        """Log p(y|G=1) = log p(y) + r(y) − log Z.  # [64]."""
        return self.log_prior + self.rewards - self.log_partition

    def log_policy(self, progress: float) -> torch.Tensor:
        """A policy on the way from the prior (0) to the posterior (1): p·exp(progress · r), normalised.  # [64]."""
        return (self.log_prior + progress * self.rewards).log_softmax(0)

    def kl_to_posterior(self, log_policy: torch.Tensor) -> float:
        """KL(posterior ‖ q_θ) in nats, exactly.  # [64] -> number."""
        return (self.log_posterior.exp() * (self.log_posterior - log_policy)).sum().item()

    def groups(self, outcomes: torch.Tensor, log_policy: torch.Tensor, log_proposal: torch.Tensor) -> GroupValues:
        """What an objective is given of sampled outcomes.

        Args:
            outcomes: drawn from the proposal.  # [b, n] int64
            log_policy: log q_θ, with its gradient.  # [64]
            log_proposal: log q'.  # [64]
        """
        there = torch.ones_like(outcomes, dtype=torch.bool)
        return GroupValues(
            policy_logprobs=log_policy[outcomes],
            prior_logprobs=self.log_prior[outcomes],
            proposal_logprobs=log_proposal[outcomes],
            rewards=self.rewards[outcomes],
            complete=there,
            valid=there,
            lengths=torch.ones_like(outcomes),
            gold_logprobs=torch.full((len(outcomes),), torch.nan, dtype=torch.float64),
            gold_lengths=torch.ones(len(outcomes), dtype=torch.int64),
            seeds=torch.zeros(len(outcomes), dtype=torch.int64),
            log_partition=0.0,
        )

    def objective_at_the_end(self, method: str) -> Objective:
        """The objective as it is once its running mean of Z, where it has one, has converged."""
        objective = make_objective(METHODS[method])
        objective.partition = RunningMean(self.log_partition, _SEEN)
        return objective


def make_world(seed: int) -> World:
    """Draw a world."""
    generator = torch.Generator().manual_seed(seed)
    logits, rewards = torch.randn(2, OUTCOMES, generator=generator, dtype=torch.float64)
    return World(logits.log_softmax(0), rewards)


def draw(log_proposal: torch.Tensor, groups: int, n: int, generator: torch.Generator) -> torch.Tensor:
    """Outcomes of so many groups.  # [groups, n] int64."""
    return torch.multinomial(log_proposal.exp(), groups * n, replacement=True, generator=generator).view(groups, n)
