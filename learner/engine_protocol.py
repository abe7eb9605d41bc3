"""What the learner needs from the engine that holds parameters and optimiser (learner/engine.py)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from brain_align.common.config.training import LearnerSection
from brain_align.common.nn.prefix.packing import Request

NamedTensors = Iterable[tuple[str, torch.Tensor]]
"""Tensors by parameter name, each made when its turn comes."""


@dataclass(frozen=True)
class ParameterState:
    """One trainable parameter as the optimiser sees it: in full, in float32, on the CPU.

    Attributes:
        weight: its value; the master copy where the model computes in another precision.
        moments: AdamW's `exp_avg` and `exp_avg_sq`; None before the first update.
    """

    weight: torch.Tensor
    moments: dict[str, torch.Tensor] | None


class Engine(Protocol):
    """One rank's part of a data-parallel optimiser over the policy's trainable parameters."""

    rank: int
    ranks: int
    can_discard: bool

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
        """Forget what `backward` has added up, also where a pass broke off; only if `can_discard`."""

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, on every rank; also waits for all of them."""

    def gather(self, value: Any) -> list[Any]:
        """The ranks' values, on every rank."""

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The trainable weights by parameter name, in the model's precision.

        All ranks must go through to the end: what is partitioned is gathered one parameter at a time. Only rank 0
        is given anything.
        """

    def updates(self) -> int:
        """How many updates AdamW has counted."""

    def parameter_states(self) -> Iterator[tuple[str, ParameterState]]:
        """The state of each trainable parameter, whatever way it is partitioned; as for `weights`."""

    def load_parameter_states(self, updates: int, state_of: Callable[[str], ParameterState]) -> None:
        """Take over what `updates` and `parameter_states` gave, with any number of ranks and any ZeRO stage.

        Args:
            updates: AdamW's count.
            state_of: by parameter name; asked once for each, on every rank.
        """


class EngineType(Protocol):
    """What makes engines."""

    def loading(self, settings: LearnerSection, dtype: str) -> AbstractContextManager[None]:
        """Within it, a model of that dtype is loaded in the way that the engine wants it: with ZeRO-3, partitioned."""

    def __call__(self, module: nn.Module, settings: LearnerSection) -> Engine:
        """The engine of a module whose forward is `Engine.logprobs`."""
