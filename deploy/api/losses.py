"""BRAIn's loss, for training loops of one's own."""

from dataclasses import replace

import torch

from brain_align.common.config.objective_sections import BrainSection
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.objectives.values import GroupValues


def brain_loss(
    policy_logps: torch.Tensor,
    prior_logps: torch.Tensor,
    proposal_logps: torch.Tensor,
    rewards: torch.Tensor,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the loss that `objective.name=brain` trains with: the mean over prompts of KL(α ‖ β).

    Its gradient for `policy_logps` is −(α − β) per prompt, divided by the number of prompts that are trained.

    Args:
        policy_logps: log q_θ(y|x), sums over the tokens of an output, in nats; the only one that gets a gradient.
            # [b, n]
        prior_logps: log p(y|x).  # [b, n]
        proposal_logps: log q'(y|x) of the distribution that the outputs were sampled from.  # [b, n]
        rewards: r(x, y).  # [b, n]
        temperature: γ; the posterior is p·exp(r/γ)/Z.
        mask: false where there is no output; None: everywhere is one.  # [b, n] bool

    Returns:
        A scalar ≥ 0, in float32 or the inputs' wider type. An output that is masked, or whose reward, prior or proposal
        is not finite, is as if it had never been sampled; a prompt that is left with fewer than two is not trained. The
        loss is 0 where no prompt is trained.

    Raises:
        ValueError: the shapes differ or are not [b, n], or the temperature is not positive.

    Example:
        b = 1, n = 2, r = (1, 0), q_θ = q' = p: α = (0.7311, 0.2689), β = (0.5, 0.5), so the loss is
        0.7311·log(0.7311/0.5) + 0.2689·log(0.2689/0.5) = 0.1109, and its gradient is (−0.2311, +0.2311).
    """
    tensors = (policy_logps, prior_logps, proposal_logps, rewards)
    shapes = [tuple(tensor.shape) for tensor in (*tensors, *([] if mask is None else [mask]))]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"all tensors must have one shape [b, n], and have {', '.join(map(str, shapes))}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, and is {temperature}")
    policy, prior, proposal, reward = (one.to(torch.promote_types(one.dtype, torch.float32)) for one in tensors)
    known = prior.isfinite() & proposal.isfinite() & reward.isfinite()
    there = known if mask is None else known & mask.bool()
    objective = make_objective(BrainSection(temperature=temperature))
    values = _group_values(policy, prior.detach(), proposal.detach(), reward.detach(), there)
    trained = objective.used(values)
    losses = objective.losses(replace(values, valid=trained))
    return losses.sum() / trained.any(dim=-1).sum().clamp(min=1)


def _group_values(
    policy: torch.Tensor, prior: torch.Tensor, proposal: torch.Tensor, rewards: torch.Tensor, there: torch.Tensor
) -> GroupValues:
    """Return what an objective is given; of gold outputs, lengths and seeds BRAIn reads nothing."""
    prompts = len(policy)
    return GroupValues(
        policy_logprobs=policy,
        prior_logprobs=prior,
        proposal_logprobs=proposal,
        rewards=rewards,
        complete=there,
        valid=there,
        lengths=torch.ones_like(there, dtype=torch.int64),
        gold_logprobs=torch.full((prompts,), torch.nan),
        gold_lengths=torch.ones(prompts, dtype=torch.int64),
        seeds=torch.zeros(prompts, dtype=torch.int64),
        log_normaliser=0.0,
    )
