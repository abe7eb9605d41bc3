"""The metrics of one optimiser step, and how far the sampler's log-probabilities are from the learner's."""

import math

import torch

from brain_align.common.config.recipe import Recipe
from brain_align.common.policies import ProposalVersion
from brain_align.learner.steps.batches import GroupBatch
from brain_align.learner.steps.gradients import BatchResult
from brain_align.learner.steps.sample_metrics import sample_metrics


def step_metrics(
    stored: GroupBatch, groups: GroupBatch, result: BatchResult, learning_rate: float, norm: float | None
) -> dict[str, float]:
    """Return the metrics of a step, all finite.

    Args:
        stored: the batch as it is stored.
        groups: the batch as the objective uses it.
        result: its loss.
        learning_rate: of the step.
        norm: the gradient's norm before clipping; None where the weights were left as they are.
    """
    trained = result.objective.trained
    metrics = {
        "trained_prompts": float(trained.sum()),
        "skipped_prompts": float((~trained).sum()),
        "missing_outputs": float(sum(map(len, stored.completions)) - stored.valid.sum()),
        "groups_collapsed": groups.collapsed(),
        "tokens": float(groups.trained_tokens()),
        "learning_rate": learning_rate,
    }
    reward = stored.mean_reward()  # of all outputs, so that it does not depend on which of them an objective uses
    if reward is not None:
        metrics["reward_mean"] = reward
    if trained.any():
        metrics["loss"] = float(result.objective.loss)
        metrics["outputs_per_prompt"] = float(groups.valid.sum(dim=1)[trained].float().mean())
    metrics |= sample_metrics(stored)
    metrics |= result.objective.metrics
    if norm is not None:
        return metrics | {"grad_norm": norm}
    if trained.any():
        return {name: value for name, value in metrics.items() if math.isfinite(value)} | {"skipped_step": 1.0}
    return metrics


def masked_metrics(stored: GroupBatch, treated: GroupBatch) -> dict[str, float]:
    """Count cut outputs that get no weight, and groups that train nothing since fewer than two others are left."""
    cut = stored.valid & ~stored.finished
    emptied = (stored.valid.sum(dim=1) >= 2) & ~treated.trained
    return {"masked_outputs": float(cut.sum()), "masked_groups": float(emptied.sum())}


def sampler_gap(
    recipe: Recipe, groups: GroupBatch, policy_logprobs: torch.Tensor, proposal: ProposalVersion | None
) -> dict[str, float]:
    """Return how far the sampler's log-probabilities are from the learner's, and what that does to a group's weights.

    Where the learner computed the proposal's again, every output is compared. Otherwise only outputs of the version
    that the policy still equals are compared, since their log-probabilities need no further forward pass.

    Args:
        recipe: the run's.
        groups: the batch as the objective uses it.
        policy_logprobs: log q_θ before the step, NaN where it was not computed.  # [b, n]
        proposal: the version that equals the policy before the step, if there is one.

    Returns:
        `sampler_gap_max` and `sampler_gap_mean` in nats per token; and, of groups with two outputs or more that can be
        compared, `sampler_gap_sd`, the standard deviation of whole outputs' gaps within a group in nats, and
        `sampler_gap_tv`, by how much the gaps alone move equal weights of a group's outputs (total variation, 0 to 1).
        Empty where nothing can be compared.
    """
    if not recipe.sampling.tokens_are_the_policy_s:
        return {}
    if recipe.logprobs.proposal == "recomputed":
        ours, comparable = groups.proposal_logprobs, groups.valid.clone()
    elif proposal is None:
        return {}
    else:
        ours = policy_logprobs
        comparable = policy_logprobs.isfinite() & (groups.proposal_versions == proposal.version)[:, None]
    comparable &= groups.lengths > 0
    if not comparable.any():
        return {}
    gap = ours - groups.sampler_logprobs  # [b, n]
    per_token = (gap.abs() / groups.lengths)[comparable]
    metrics = {"sampler_gap_max": float(per_token.max()), "sampler_gap_mean": float(per_token.mean())}
    return metrics | _gap_within_groups(gap, comparable)


def _gap_within_groups(gap: torch.Tensor, comparable: torch.Tensor) -> dict[str, float]:
    """Return the spread of the gaps ([b, n], nats per output) within groups, which alone changes their weights."""
    counts = comparable.sum(dim=1)
    several = counts >= 2  # [b]
    if not several.any():
        return {}
    gap, known, counts = gap[several].double(), comparable[several], counts[several]
    deviations = torch.where(known, gap - torch.where(known, gap, 0.0).sum(dim=1, keepdim=True) / counts[:, None], 0.0)
    variance = deviations.square().sum(dim=1) / (counts - 1)
    moved = torch.where(known, gap, -torch.inf).softmax(dim=1) - known / counts[:, None]
    return {
        "sampler_gap_sd": float(variance.mean().sqrt()),
        "sampler_gap_tv": float(moved.abs().sum(dim=1).mean() / 2),
    }


def gap_warning(recipe: Recipe, step: int, metrics: dict[str, float]) -> str | None:
    """Return a warning where a step's `sampler_gap` is above `logprobs.gap_warning`, or moves the weights."""
    settings, mean = recipe.logprobs, metrics.get("sampler_gap_mean", 0.0)
    if mean <= settings.gap_warning:
        return _moved_weights(recipe, step, metrics)
    remedy = "" if settings.proposal == "recomputed" else ", or set logprobs.proposal=recomputed"
    return (
        f"WARNING: step {step}: sampler and learner differ by {mean:.2g} nats per token (logprobs.gap_warning is "
        f"{settings.gap_warning:g}). Over a whole output that is as large as rewards are; compare their precision and "
        f"quantisation{remedy}."
    )


def _moved_weights(recipe: Recipe, step: int, metrics: dict[str, float]) -> str | None:
    """Return a warning where the gaps of outputs move a group's weights; later versions are like the first two."""
    moved = metrics.get("sampler_gap_tv", 0.0)
    is_early = step <= recipe.algorithm.updates_per_round + 1  # version 0 differs by kernels, version 1 by merging, too
    if moved <= _NOTICEABLE or recipe.logprobs.proposal == "recomputed" or not is_early:
        return None
    return (
        f"WARNING: step {step}: sampler and learner differ by {metrics['sampler_gap_sd']:.2g} nats per output "
        f"(standard deviation within a group), which alone moves the weights of a group's outputs by {100 * moved:.2g} "
        f"% (rounding in {recipe.policy.dtype}). Set logprobs.proposal=recomputed, or policy.dtype=float32."
    )


_NOTICEABLE = 0.05
"""Total variation of a group's weights by rounding alone, above which a warning is given."""
