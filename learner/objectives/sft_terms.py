"""Methods that add the likelihood of outputs, as in supervised fine-tuning, to a loss over pairs."""

import torch
from torch.nn.functional import logsigmoid, relu

from brain_align.common.config.objective_sections import DpoNllSection, SftTermSection, SlicSection
from brain_align.learner.objectives.dpo import paired
from brain_align.learner.objectives.pairs import in_a_pair, margins, mean_over_pairs, winners
from brain_align.learner.objectives.values import Definition, GroupValues


def likelihood_of_one(values: GroupValues, settings: SftTermSection) -> torch.Tensor:
    """Return log q_θ of the gold output, or of the first output with the highest reward.  # [b]."""
    if settings.needs_gold:
        return values.gold_logprobs
    return values.policy_logprobs.gather(1, best(values)[:, None])[:, 0]


def best(values: GroupValues) -> torch.Tensor:
    """Return the index of the first output with the highest reward.  # [b] int64."""
    return torch.where(values.complete, values.rewards, -torch.inf).argmax(dim=-1)


def paired_or_best(values: GroupValues, settings: SlicSection) -> torch.Tensor:
    """Use the outputs of all pairs, and with `sft_on: best` the best one of groups that have a pair.  # [b, n]."""
    used = in_a_pair(winners(values, settings.pairs))
    if settings.sft_on == "best" and settings.sft_weight > 0:
        used = used | _one_hot(values) & used.any(dim=-1, keepdim=True)
    return used


def slic(values: GroupValues, settings: SlicSection) -> torch.Tensor:
    """max(0, δ − log q_w + log q_l) − λ log q_θ(y_ref) (SLiC-HF, Zhao et al. 2023, arXiv 2305.10425).

    Example:
        δ = 1, λ = 0.1, log q_w = −10, log q_l = −10.5, log q_ref = −8: 0.5 + 0.8 = 1.3.
    """
    losses = mean_over_pairs(relu(settings.margin - margins(values.policy_logprobs)), winners(values, settings.pairs))
    # With a weight of zero gold may be NaN.
    return losses - settings.sft_weight * likelihood_of_one(values, settings) if settings.sft_weight else losses


def dpo_nll(values: GroupValues, settings: DpoNllSection) -> torch.Tensor:
    """−log σ(βΔ) − ηβ log q_θ(y_w): the SFT loss as adversarial regulariser (RPO, Liu et al. 2024, 2405.16436).

    Example:
        β = 0.1, Δ = 3, η = 0.005, log q_w = −10: 0.5544 + 0.005 = 0.5594.
    """
    pairs, weight = winners(values, settings.pairs), settings.sft_weight * settings.beta
    terms = -logsigmoid(settings.beta * margins(values.log_ratios))
    if settings.needs_gold:
        return mean_over_pairs(terms, pairs) - weight * values.gold_logprobs
    return mean_over_pairs(terms - weight * values.policy_logprobs[:, :, None], pairs)


def _one_hot(values: GroupValues) -> torch.Tensor:
    return torch.zeros_like(values.complete).scatter(1, best(values)[:, None], True) & values.complete


OBJECTIVES = {"slic": Definition(slic, paired_or_best), "dpo+nll": Definition(dpo_nll, paired)}
