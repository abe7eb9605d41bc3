"""What an objective is given, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from common.config.recipe import ObjectiveSection


@dataclass(frozen=True)
class GroupValues:
    """Sequence log-probabilities (sums over the completion, in nats) and rewards of b groups of n outputs.

    What stands in a slot that is not valid is never used, NaN included.

    Attributes:
        policy_logprobs: log q_θ(y|x), the only one that carries a gradient.  # [b, n] float32
        prior_logprobs: log p(y|x).  # [b, n] float32
        proposal_logprobs: log q'(y|x) of the distribution sampled from.  # [b, n] float32
        rewards: r(x, y).  # [b, n] float32
        valid: the slot holds an output, and none of its values is missing.  # [b, n] bool
    """

    policy_logprobs: torch.Tensor
    prior_logprobs: torch.Tensor
    proposal_logprobs: torch.Tensor
    rewards: torch.Tensor
    valid: torch.Tensor


@dataclass(frozen=True)
class ObjectiveResult:
    """The losses of a batch of groups.

    Attributes:
        losses: one a prompt; 0 where the prompt is not trained.  # [b] float32
        trained: whether the prompt carries a gradient.  # [b] bool
        metrics: means over the trained prompts, without gradient; empty where there is none.
    """

    losses: torch.Tensor
    trained: torch.Tensor
    metrics: dict[str, float]

    @property
    def loss(self) -> torch.Tensor:
        """The mean over the trained prompts, 0 where there is none: what a step minimises."""
        return self.losses.sum() / self.trained.sum().clamp(min=1)


Objective = Callable[[GroupValues, ObjectiveSection], ObjectiveResult]
"""A loss as a pure function of what the store holds and of the policy's log-probabilities."""
