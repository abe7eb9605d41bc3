"""Inputs and outputs of an objective."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

Losses = Callable[["GroupValues", Any], torch.Tensor]
"""A loss: values and the settings of its section to one number per prompt, [b]; entries where `valid.any(-1)` is false
are ignored. A prompt's loss depends on that prompt's values alone."""

Used = Callable[["GroupValues", Any], torch.Tensor]
"""Selection of the valid outputs that a loss reads, [b, n] bool. It must not read the policy's log-probabilities, which
are computed only for these outputs. It is idempotent: given the outputs that it chose, it chooses all of them."""

Metrics = Callable[["GroupValues", Any, torch.Tensor], dict[str, torch.Tensor]]
"""Metrics of a family: the loss's arguments and the rewards as stored, [b, n], to [b] numbers, which are averaged over
the trained prompts."""


@dataclass(frozen=True)
class GroupValues:
    """Sequence log-probabilities (sums over the completion, in nats) and rewards of b groups of n outputs.

    Values in a slot that is not complete are never used, and may be NaN.
    """

    policy_logprobs: torch.Tensor  # [b, n] float32: log q_θ(y|x); only this and that of gold carry a gradient
    prior_logprobs: torch.Tensor  # [b, n] float32: log p(y|x)
    proposal_logprobs: torch.Tensor  # [b, n] float32: log q'(y|x) of the distribution sampled from
    rewards: torch.Tensor  # [b, n] float32: r(x, y)
    # [b, n] bool: the slot holds an output, and none of its values is missing; pairs, the best output and transformed
    # rewards are determined among these.
    complete: torch.Tensor
    valid: torch.Tensor  # [b, n] bool: complete outputs that are trained on; of others the policy's values are unknown
    lengths: torch.Tensor  # [b, n] int64: tokens of each output
    gold_logprobs: torch.Tensor  # [b] float32: log q_θ of the gold output; NaN where the objective needs none
    gold_lengths: torch.Tensor  # [b] int64: its tokens; 1 where there is none
    seeds: torch.Tensor  # [b] int64: of random draws for a group, the same whenever it is trained
    log_normaliser: float  # log Z: mean of P/q' over all trained outputs, this step included; 0 where none is needed

    def without_gaps(self) -> "GroupValues":
        """Return a copy with zeros, and lengths of one, in slots that are not valid, so that nothing there can be NaN.

        Rewards are kept in all `complete` slots.
        """
        return replace(
            self,
            policy_logprobs=torch.where(self.valid, self.policy_logprobs, 0.0),
            prior_logprobs=torch.where(self.valid, self.prior_logprobs, 0.0),
            proposal_logprobs=torch.where(self.valid, self.proposal_logprobs, 0.0),
            rewards=torch.where(self.complete, self.rewards, 0.0),
            lengths=torch.where(self.valid, self.lengths, 1).clamp(min=1),
        )

    def valid_alone(self) -> "GroupValues":
        """Return a copy as if the valid outputs had been all."""
        return replace(self, complete=self.valid)

    @property
    def log_ratios(self) -> torch.Tensor:
        """S = log q_θ − log p.  # [b, n]."""
        return self.policy_logprobs - self.prior_logprobs

    @property
    def per_token(self) -> torch.Tensor:
        """L = log q_θ / |y|.  # [b, n]."""
        return self.policy_logprobs / self.lengths.clamp(min=1)


@dataclass(frozen=True)
class ObjectiveResult:
    """The losses of a batch of groups."""

    losses: torch.Tensor  # [b] float32: one per prompt; 0 where the prompt is not trained
    trained: torch.Tensor  # [b] bool: the prompt carries a gradient
    metrics: dict[str, float]  # means over the trained prompts, without gradient; empty where there is none

    @property
    def loss(self) -> torch.Tensor:
        """The mean over the trained prompts, 0 where there is none: the quantity that a step minimises."""
        return self.losses.sum() / self.trained.sum().clamp(min=1)


@dataclass(frozen=True)
class Definition:
    """An entry of a file's `OBJECTIVES`."""

    losses: Losses
    used: Used
    metrics: Metrics | None = None  # besides `diagnostics`
