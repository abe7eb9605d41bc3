"""The gradient of an objective over a batch of groups, exact in any memory budget and on any number of ranks.

An objective is a function of the sequence log-probabilities, so its gradient is Σ_i c_i ∇ log q_θ(y_i) with
the coefficients c_i = ∂loss/∂log q_θ(y_i) (BRAIn: β_i − α_i). The coefficients come from the values of the
log-probabilities alone; then Σ_i c_i log q_θ(y_i) can be backpropagated over any partition of the outputs.
"""

from dataclasses import dataclass

import torch

from brain_align.common.nn.prefix.packing import TokenBudget
from brain_align.learner.engine_protocol import Engine
from brain_align.learner.objectives.objective import Objective
from brain_align.learner.objectives.values import ObjectiveResult
from brain_align.learner.steps.batches import GroupBatch
from brain_align.learner.steps.micro_batches import MicroBatch, share_out


@dataclass(frozen=True)
class BatchResult:
    """A batch's loss, the same on every rank."""

    policy_logprobs: torch.Tensor  # [b, n]: log q_θ before the step, NaN where it was not computed
    objective: ObjectiveResult  # of the whole batch


def accumulate_gradient(engine: Engine, batch: GroupBatch, objective: Objective, budget: TokenBudget) -> BatchResult:
    """Accumulate the gradient of the mean loss over the batch's trained prompts, without taking the step.

    Args:
        engine: one rank's; all ranks must call with the same batch.
        batch: the whole batch, narrowed to what the objective uses.
        objective: must have observed the batch; a prompt's loss depends on that prompt's values alone.
        budget: of one forward pass.
    """
    shares = share_out(batch, engine.ranks, budget)
    run = _Run(engine, batch, objective)
    run.compute_split([[micro for unit in share if len(unit) > 1 for micro in unit] for share in shares])
    run.add_gradient([[micro for unit in share for micro in unit] for share in shares])
    policy = engine.sum_over_ranks(run.policy_logprobs)
    policy = torch.where(batch.computed, policy, torch.nan)
    return BatchResult(policy[:, :-1], objective(batch.values(policy)))


class _Run:
    """One rank's passes over its share of a batch.

    All ranks make the same number of passes, first those without and then those with gradients: from ZeRO-2 on every
    backward pass reduces over the ranks, and with ZeRO-3 every pass gathers weights from them. A rank with less work
    repeats passes of others, with weight zero.
    """

    def __init__(self, engine: Engine, batch: GroupBatch, objective: Objective) -> None:
        self.policy_logprobs = torch.zeros(batch.computed.shape)  # [b, n + 1], filled in for this rank's texts
        self._engine = engine
        self._batch = batch
        self._objective = objective
        # DeepSpeed averages over the ranks; the loss is the mean over the batch's prompts.
        self._scale = engine.ranks / max(1, int(batch.trained.sum()))

    @torch.no_grad()
    def compute_split(self, shares: list[list[MicroBatch]]) -> None:
        """Compute the log-probabilities of split groups: coefficients depend on the whole group."""
        own, fillers = self._passes(shares)
        for micro in own:
            self._record(micro, self._logprobs(micro))
        for micro in fillers:
            self._logprobs(micro)

    def add_gradient(self, shares: list[list[MicroBatch]]) -> None:
        """Add the gradient of every group."""
        own, fillers = self._passes(shares)
        last = len(own) + len(fillers) - 1
        for index, micro in enumerate(own):
            graph = self._logprobs(micro)
            self._record(micro, graph.detach())
            coefficients = self._coefficients(sorted({part.group for part in micro}))
            self._backward(graph, _pick(coefficients, micro), last=index == last)
        for index, micro in enumerate(fillers, start=len(own)):
            graph = self._logprobs(micro)
            self._backward(graph, torch.zeros(len(graph)), last=index == last)

    def _passes(self, shares: list[list[MicroBatch]]) -> tuple[list[MicroBatch], list[MicroBatch]]:
        """Return this rank's micro-batches, and others' that fill its passes up to the number of the busiest rank."""
        own, busiest = shares[self._engine.rank], max(shares, key=len)
        return own, busiest[len(own) :]

    def _logprobs(self, micro: MicroBatch) -> torch.Tensor:
        batch = self._batch
        return self._engine.logprobs(
            [(batch.prompts[part.group], [batch.text(part.group, column) for column in part.columns]) for part in micro]
        )

    def _record(self, micro: MicroBatch, values: torch.Tensor) -> None:
        sizes = [len(part.columns) for part in micro]
        for part, part_values in zip(micro, values.cpu().split(sizes), strict=True):
            self.policy_logprobs[part.group, part.columns] = part_values

    def _coefficients(self, groups: list[int]) -> torch.Tensor:
        """Return ∂(Σ of the groups' losses)/∂log q_θ, 0 in other rows.  # [b, n + 1]."""
        leaf = self.policy_logprobs[groups].requires_grad_()
        losses = self._objective.losses(self._batch.values(leaf, groups))
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        # A loss that is not finite must give a gradient that is not finite: every rank then skips the step.
        gradient[~losses.isfinite()] = torch.nan
        coefficients = torch.zeros_like(self.policy_logprobs)
        coefficients[groups] = gradient
        return coefficients

    def _backward(self, logprobs: torch.Tensor, coefficients: torch.Tensor, *, last: bool) -> None:
        surrogate = (coefficients.to(logprobs.device) * logprobs).sum() * self._scale
        self._engine.backward(surrogate, last=last)


def _pick(matrix: torch.Tensor, micro: MicroBatch) -> torch.Tensor:
    """Return the entries of a micro-batch's texts, in their order.  # [texts]."""
    return torch.cat([matrix[part.group, part.columns] for part in micro])
