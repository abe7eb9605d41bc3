"""The gradient of an objective over a batch of groups, exact in any memory budget and on any number of ranks.

An objective is a function of the sequence log-probabilities, so its gradient is Σ_i c_i ∇ log q_θ(y_i) with
the coefficients c_i = ∂loss/∂log q_θ(y_i) (BRAIn: β_i − α_i). The coefficients come from the values of the
log-probabilities alone; then Σ_i c_i log q_θ(y_i) can be backpropagated over any partition of the outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from common.nn.packing import TokenBudget
from learner.batches import GroupBatch
from learner.engine_protocol import Engine
from learner.objectives.values import GroupValues, ObjectiveResult
from learner.partition import MicroBatch, Part, Unit, plan

Loss = Callable[[GroupValues], ObjectiveResult]
"""An objective with its settings."""


@dataclass(frozen=True)
class BatchResult:
    """A batch's loss, the same on every rank.

    Attributes:
        policy_logprobs: log q_θ before the step, NaN where it was not needed.  # [b, n]
        objective: losses and metrics of the whole batch.
    """

    policy_logprobs: torch.Tensor
    objective: ObjectiveResult


def accumulate_gradient(engine: Engine, batch: GroupBatch, loss: Loss, budget: TokenBudget) -> BatchResult:
    """Add up the gradient of the mean loss over the batch's trained prompts; the step is still to come.

    Args:
        engine: one rank; all ranks must call with the same batch.
        batch: the whole batch.
        loss: the objective; a prompt's loss must depend on that prompt's values alone.
        budget: of one forward pass.
    """
    units = plan(batch, engine.ranks, budget)
    passes = [sum(len(unit) for unit in share) for share in units]
    run = _Run(engine, batch, loss, passes_left=max(passes))
    for unit in units[engine.rank]:
        run.add_unit(unit)
    if passes[engine.rank] < max(passes):
        busiest = units[passes.index(max(passes))]
        run.keep_step([micro for unit in busiest for micro in unit][passes[engine.rank] :])
    policy = engine.sum_over_ranks(run.policy_logprobs)
    computed = batch.valid & batch.trained[:, None]
    policy = torch.where(computed, policy, torch.nan)
    return BatchResult(policy, loss(batch.values(policy)))


class _Run:
    """One rank's passes over its share of a batch."""

    def __init__(self, engine: Engine, batch: GroupBatch, loss: Loss, passes_left: int) -> None:
        self.policy_logprobs = torch.zeros(batch.valid.shape)  # [b, n], filled in for this rank's outputs
        self._engine = engine
        self._batch = batch
        self._loss = loss
        self._passes_left = passes_left
        # DeepSpeed averages over the ranks; what is wanted is the mean over the batch's prompts.
        self._scale = engine.ranks / max(1, int(batch.trained.sum()))

    def add_unit(self, unit: Unit) -> None:
        """Compute log-probabilities, coefficients and gradient of one unit."""
        if len(unit) == 1:
            graphs = [self._logprobs(unit[0])]
            values = [graphs[0].detach()]
        else:
            graphs = []
            with torch.no_grad():
                values = [self._logprobs(micro) for micro in unit]
        for micro, micro_values in zip(unit, values, strict=True):
            self._record(micro, micro_values)
        coefficients = self._coefficients(sorted({part.group for micro in unit for part in micro}))
        for index, micro in enumerate(unit):
            graph = graphs[index] if graphs else self._logprobs(micro)
            self._backward(graph, _pick(coefficients, micro))

    def keep_step(self, micro_batches: list[MicroBatch]) -> None:
        """Pass through others' work, with no weight: ZeRO-2 reduces at every backward of all ranks."""
        for micro in micro_batches:
            graph = self._logprobs(micro)
            self._backward(graph, torch.zeros(len(graph)))

    def _logprobs(self, micro: MicroBatch) -> torch.Tensor:
        batch = self._batch
        return self._engine.logprobs(
            [(batch.prompts[part.group], [batch.completions[part.group][i] for i in part.outputs]) for part in micro]
        )

    def _record(self, micro: MicroBatch, values: torch.Tensor) -> None:
        sizes = [len(part.outputs) for part in micro]
        for part, part_values in zip(micro, values.cpu().split(sizes), strict=True):
            self.policy_logprobs[part.group, part.outputs] = part_values

    def _coefficients(self, groups: list[int]) -> torch.Tensor:
        """∂(Σ of the groups' losses)/∂log q_θ, 0 in other rows.  # [b, n]."""
        leaf = self.policy_logprobs[groups].requires_grad_()
        losses = self._loss(self._batch.values(leaf, groups)).losses
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        # A loss that is not finite must leave a gradient that is not: the step is then skipped, on every rank.
        gradient[~losses.isfinite()] = torch.nan
        coefficients = torch.zeros_like(self.policy_logprobs)
        coefficients[groups] = gradient
        return coefficients

    def _backward(self, logprobs: torch.Tensor, coefficients: torch.Tensor) -> None:
        self._passes_left -= 1
        surrogate = (coefficients.to(logprobs.device) * logprobs).sum() * self._scale
        self._engine.backward(surrogate, last=self._passes_left == 0)


def _pick(matrix: torch.Tensor, parts: list[Part]) -> torch.Tensor:
    """The entries of a micro-batch's outputs, in their order.  # [outputs]."""
    return torch.cat([matrix[part.group, part.outputs] for part in parts])
