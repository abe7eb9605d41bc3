"""A user's own loss, by import path, tried before it trains anything."""

from collections.abc import Callable
from dataclasses import replace
from math import isclose
from typing import Any

import torch

from brain_align.common.config.objective_sections import OwnSection
from brain_align.common.errors import UserError
from brain_align.common.user_code import user_function
from brain_align.learner.objectives.brain import two_or_more
from brain_align.learner.objectives.values import Definition, GroupValues, Losses


def load_own(settings: OwnSection) -> Definition:
    """Load the function at `objective.name`, which maps (GroupValues, OwnSection) to one loss per prompt, [b].

    Raises:
        UserError: it cannot be imported, or does not return finite losses with a gradient.
    """
    function, _ = user_function(settings.name, "objective.name")
    _try(function, settings)
    return Definition(function, two_or_more)


def _try(function: Losses, settings: OwnSection) -> None:
    """Call it on two prompts, then on each of them alone."""
    leaf = _trial_values()
    try:
        losses = function(leaf.without_gaps(), settings)
        problem = (
            _problem(losses, leaf)
            or _problem_again(losses, function(leaf.without_gaps(), settings))
            or _problem_alone(losses, leaf, lambda values: function(values, settings))
        )
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"objective.name={settings.name} fails on a trial batch: {type(error).__name__}: {error}."
        ) from error
    if problem:
        raise UserError(f"objective.name={settings.name} {problem}; docs/objectives.md says what it must return.")


def _problem(losses: object, values: GroupValues) -> str | None:
    prompts = len(values.policy_logprobs)
    if not isinstance(losses, torch.Tensor) or losses.shape != (prompts,):
        shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        return f"must return one loss per prompt, here a tensor of shape ({prompts},), but returned {shape}"
    if not losses.requires_grad:
        return "returns losses that do not depend on policy_logprobs; there is nothing to train"
    (gradient,) = torch.autograd.grad(losses.sum(), values.policy_logprobs)
    if not (losses.isfinite().all() and gradient.isfinite().all()):
        return "gives losses or gradients that are not finite on a trial batch with a slot that is not valid"
    return None


def _problem_again(first: torch.Tensor, second: torch.Tensor) -> str | None:
    if not all(map(_same, first.tolist(), second.tolist())):
        return (
            "returns different losses for the same batch each time it is called, so that training could not be "
            "repeated; draw random numbers from values.seeds"
        )
    return None


def _problem_alone(
    losses: torch.Tensor, values: GroupValues, function: Callable[[GroupValues], torch.Tensor]
) -> str | None:
    """Return a problem if a prompt's loss depends on the rest of the batch, or on slots that are not valid."""
    for row, together in enumerate(losses.tolist()):
        alone = function(_of_prompt(values, row, torch.ones_like(values.valid[row])).without_gaps()).item()
        if not _same(alone, together):
            return (
                f"gives a prompt the loss {together:.6g} beside another prompt and {alone:.6g} alone, so that a step "
                f"would depend on how its batch is cut; it may depend on that prompt alone"
            )
        whole = function(_of_prompt(values, row, values.valid[row])).item()
        if not _same(whole, alone):
            return (
                f"gives a prompt the loss {alone:.6g} with a slot that is not valid and {whole:.6g} without that slot, "
                f"which is as if it had never been sampled; order, pair, draw and reduce among values.valid alone, as "
                f"masked_mean does (learner.objectives.masked)"
            )
    return None


def _same(one: float, other: float) -> bool:
    return isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)


def _of_prompt(values: GroupValues, row: int, columns: torch.Tensor) -> GroupValues:
    """Return one prompt with some of its slots.  # columns: [n] bool."""
    tensors: dict[str, Any] = {
        name: value[row : row + 1] for name, value in vars(values).items() if isinstance(value, torch.Tensor)
    }
    return replace(values, **{name: value[:, columns] if value.ndim == 2 else value for name, value in tensors.items()})


def _trial_values() -> GroupValues:
    """Return two prompts of three outputs, one of them missing."""
    generator = torch.Generator().manual_seed(0)
    policy, prior, proposal, rewards = (torch.randn(2, 3, generator=generator) - 5 for _ in range(4))
    there = torch.tensor([[True, True, True], [True, False, True]])
    return GroupValues(
        policy_logprobs=policy.requires_grad_(),
        prior_logprobs=prior,
        proposal_logprobs=proposal,
        rewards=rewards,
        complete=there,
        valid=there,
        lengths=torch.tensor([[3, 2, 4], [5, 1, 2]]),
        gold_logprobs=torch.full((2,), torch.nan),
        gold_lengths=torch.ones(2, dtype=torch.int64),
        seeds=torch.arange(2),
        log_normaliser=0.0,
    )
