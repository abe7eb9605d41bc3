"""The interface of the engine that holds parameters and optimiser (learner/engine.py), as the learner uses it."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from brain_align.common.config.training import LearnerSection
from brain_align.common.nn.prefix.packing import Request

T = TypeVar("T")

NamedTensors = Iterable[tuple[str, torch.Tensor]]
"""Tensors by parameter name, made one at a time as they are iterated over."""


@dataclass(frozen=True)
class ParameterState:
    """One trainable parameter as the optimiser sees it: complete, in float32, on the CPU."""

    weight: torch.Tensor  # the master copy where the model computes in another precision
    moments: dict[str, torch.Tensor] | None  # AdamW's `exp_avg` and `exp_avg_sq`; None before the first update


class Engine(Protocol):
    """One rank's part of a data-parallel optimiser over the policy's trainable parameters."""

    rank: int  # from 0 on
    ranks: int
    can_discard: bool  # whether `discard_gradient` works

    def logprobs(self, requests: list[Request]) -> torch.Tensor:
        """Compute log q_θ(y|x) of all outputs of all requests, in their order, differentiable.  # [outputs] float32."""

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`, averaged over the ranks; `last` completes the step's gradient."""

    def step(self, learning_rate: float) -> float:
        """Clip the gradient, update the weights and clear the gradient; return its norm before clipping.

        A gradient that is not finite changes nothing, and the returned norm is infinite or NaN.
        """

    def discard_gradient(self) -> None:
        """Clear the accumulated gradient, also after a pass that broke off; only if `can_discard`."""

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, on every rank; a barrier."""

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, on every rank; a barrier.

        Values are numbers, texts, None, tensors, and lists, tuples and dictionaries of these.
        """

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the trainable weights by parameter name, in the model's precision.

        All ranks must iterate to the end: partitioned weights are gathered one parameter at a time. Only rank 0
        receives items.
        """

    def updates(self) -> int:
        """Return the number of updates that AdamW has counted."""

    def parameter_states(self) -> Iterator[tuple[str, ParameterState]]:
        """Yield the state of each trainable parameter, however it is partitioned; as for `weights`."""

    def load_parameter_states(self, updates: int, state_of: Callable[[str], ParameterState]) -> None:
        """Restore what `updates` and `parameter_states` returned, for any number of ranks and any ZeRO stage.

        `state_of` is called once per parameter, with its name, on every rank.
        """


class EngineType(Protocol):
    """A class of engines."""

    def loading(self, settings: LearnerSection, dtype: str) -> AbstractContextManager[None]:
        """Return a context in which a model of that dtype is loaded as the engine needs it: partitioned for ZeRO-3."""

    def __call__(self, module: nn.Module, settings: LearnerSection) -> Engine:
        """Make the engine of a module whose forward pass is `Engine.logprobs`."""


def packed(value: Any) -> torch.Tensor:
    """Return a value that `Engine.gather` takes as bytes.  # [bytes] uint8."""
    file = io.BytesIO()
    torch.save(value, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def unpacked(content: torch.Tensor) -> Any:
    """Return the value that another rank has packed; a `pickle.UnpicklingError` if it is anything else."""
    return torch.load(io.BytesIO(content.cpu().numpy().tobytes()), weights_only=True)


def seen_by_rank_0(engine: Engine, seen: bool) -> bool:
    """Return what rank 0 sees, on every rank: all ranks must take part in writing something, or none."""
    return engine.gather(seen)[0]


def write_on_rank_0(engine: Engine, stream: Iterable[T], write: Callable[[Iterable[T]], object]) -> None:
    """Have rank 0 write a stream that all ranks must iterate over; return on every rank when it is written."""
    if engine.rank == 0:
        write(stream)
    else:
        deque(stream, maxlen=0)
    engine.gather(None)
