"""Figures of the sampled outputs themselves: what the guards watch, whatever the objective is (docs/metrics.md)."""

import torch

from brain_align.learner.objectives.masked import masked_mean
from brain_align.learner.steps.batches import GroupBatch

_FLAT = 1e-12  # variance below which numbers are all the same


def sample_metrics(stored: GroupBatch) -> dict[str, float]:
    """Return figures of a batch's outputs, as sampled and scored, all finite; those that need several are left out.

    * `ended`: percent of outputs that finished before `sampling.max_tokens`.
    * `output_tokens`: mean length of an output.
    * `entropy`: nats per token of the distribution sampled from, estimated by −Σ log q'(y) / Σ |y|.
    * `reward_sd`: standard deviation of rewards within a group, root mean square over groups.
    * `reward_length_correlation`, `reward_per_token`: correlation of reward and length within groups, and the slope.
    """
    there = stored.sampler_logprobs.isfinite()
    if not there.any():
        return {}
    tokens = stored.lengths[there].sum()
    metrics = {
        "ended": 100 * float(stored.finished[there].float().mean()),
        "output_tokens": float(stored.lengths[there].float().mean()),
        "entropy": -float(stored.sampler_logprobs[there].double().sum() / tokens.clamp(min=1)),
    }
    return metrics | _reward_and_length(stored)


def _reward_and_length(stored: GroupBatch) -> dict[str, float]:
    """Return how rewards vary within groups, and with length; groups with one output say nothing."""
    used = stored.valid & (stored.valid.sum(dim=1, keepdim=True) >= 2)
    count = int(used.sum() - used.any(dim=1).sum())  # degrees of freedom
    if not count:
        return {}
    rewards, lengths = _within(stored.rewards, used), _within(stored.lengths, used)
    reward_variance, length_variance = rewards.square().sum() / count, lengths.square().sum() / count
    metrics = {"reward_sd": float(reward_variance.sqrt())}
    if reward_variance > _FLAT and length_variance > _FLAT:
        both = (rewards * lengths).sum() / count
        metrics["reward_length_correlation"] = float(both / (reward_variance * length_variance).sqrt())
        metrics["reward_per_token"] = float(both / length_variance)
    return metrics


def _within(values: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Return the deviations from a group's mean, 0 where not used.  # [b, n] float64."""
    known = torch.where(used, values, 0).double()
    return torch.where(used, known - masked_mean(known, used)[:, None], 0.0)
