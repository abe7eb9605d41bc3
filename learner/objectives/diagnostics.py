"""What every objective reports: how the policy's likelihoods move, whatever it is trained on."""

import torch

from brain_align.learner.objectives.masked import masked_log_softmax, masked_mean
from brain_align.learner.objectives.pairs import margins, mean_over_pairs, winners
from brain_align.learner.objectives.values import GroupValues


def diagnostics(values: GroupValues) -> dict[str, torch.Tensor]:
    """One number a prompt each.  # [b].

    * `ess_beta`: effective number of outputs under the policy's weights β ∝ q_θ/q'.
    * `kl_policy_prior`: KL(q_θ‖p), the outputs of q' weighted to stand for q_θ's.
    * `ranking_accuracy`: share of the pairs of unequal rewards in which q_θ finds the better output likelier
      (arXiv 2405.19534); NaN where all rewards are equal.
    * `best_drift`, `worst_drift`: log q_θ − log p of the outputs of highest and lowest reward (arXiv 2406.07327).
    """
    log_beta = masked_log_softmax(values.policy_logprobs - values.proposal_logprobs, values.valid)
    beta = torch.where(values.valid, log_beta.exp(), 0.0)
    pairs = winners(values.valid_alone(), "all")
    ordered = mean_over_pairs((margins(values.policy_logprobs) > 0).float(), pairs)
    extremes = winners(values.valid_alone(), "best-worst")  # at most one pair
    drift = values.log_ratios
    return {
        "ess_beta": 1 / beta.square().sum(dim=-1),
        "kl_policy_prior": (beta * drift).sum(dim=-1),
        "ranking_accuracy": torch.where(pairs.any(dim=(1, 2)), ordered, torch.nan),
        "best_drift": _of_pair(extremes.any(dim=2), drift),
        "worst_drift": _of_pair(extremes.any(dim=1), drift),
    }


def _of_pair(member: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The value of the one output that is marked; NaN where none is.  # [b, n], [b, n] -> [b]."""
    return torch.where(member.any(dim=-1), masked_mean(values, member), torch.nan)
