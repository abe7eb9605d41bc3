"""What the learner needs from the engine that holds parameters and optimiser (learner/engine.py)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from common.config.recipe import LearnerSection
from common.nn.packing import Request


@dataclass(frozen=True)
class OptimizerState:
    """AdamW's state in full, whatever way it is sharded.

    Attributes:
        updates: optimiser steps that AdamW has counted.
        moments: `exp_avg` and `exp_avg_sq` by parameter name; empty before the first update.
    """

    updates: int
    moments: dict[str, dict[str, torch.Tensor]]


class Engine(Protocol):
    """One rank's part of a data-parallel optimiser over the policy's trainable parameters."""

    rank: int
    ranks: int

    def logprobs(self, requests: list[Request]) -> torch.Tensor:
        """The log q_θ(y|x) of all outputs of all requests, in their order, differentiable.

        Returns:
            [outputs] float32
        """

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`, averaged over the ranks; `last` completes the step's gradient."""

    def step(self, learning_rate: float) -> float:
        """Clip, update and clear the gradient; returns its norm before clipping.

        A gradient that is not finite changes nothing; the norm, infinite or NaN, tells.
        """

    def discard_gradient(self) -> None:
        """Forget what `backward` has added up, also where it was interrupted; there must be one rank only."""

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, on every rank; also waits for all of them."""

    def gather(self, value: Any) -> list[Any]:
        """The ranks' values, on every rank."""

    def optimizer_state(self) -> OptimizerState:
        """The whole state, on every rank; all ranks must call."""

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Take over what `optimizer_state` returned, with any number of ranks and any ZeRO stage."""


MakeEngine = Callable[[nn.Module, LearnerSection], Engine]
"""(module whose forward is `logprobs`, settings) -> engine"""
