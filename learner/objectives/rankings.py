"""Losses of a group's whole ranking: each output against all with a lower reward. Ties are not ordered.

All are sums over positions or pairs, as in their papers, so they grow with n.
"""

import torch
from torch.nn.functional import relu

from brain_align.common.config.objective_sections import PlackettLuceSection, ProSection, RrhfSection
from brain_align.learner.objectives.masked import masked_logsumexp
from brain_align.learner.objectives.pairs import in_a_pair, margins, winners
from brain_align.learner.objectives.sft_terms import best, likelihood_of_one
from brain_align.learner.objectives.values import Definition, GroupValues

RankingSection = PlackettLuceSection | RrhfSection | ProSection


def ranked(values: GroupValues, settings: RankingSection) -> torch.Tensor:
    """Use all outputs of groups in which two rewards differ.  # [b, n]."""
    differ = in_a_pair(winners(values, "all")).any(dim=-1, keepdim=True)
    return values.valid & differ


def plackett_luce(values: GroupValues, settings: PlackettLuceSection) -> torch.Tensor:
    """−Σ_k [βs_(k) − log Σ_{j≥k} exp βs_(j)], in the order of rewards (Rafailov et al. 2023, appendix).

    With two outputs it is DPO's loss.

    Example:
        β = 1, s = (1, 0, 0) in the order of rewards: (log(e + 2) − 1) + log 2 = 0.5514 + 0.6931 = 1.2446.
    """
    scaled = settings.beta * values.log_ratios
    below = winners(values, "all")  # [b, n, n]: j is below i
    own_or_below = below | torch.eye(below.shape[-1], dtype=torch.bool)
    terms = masked_logsumexp(scaled[:, None, :].expand(below.shape), own_or_below) - scaled
    return torch.where(below.any(dim=-1), terms, 0.0).sum(dim=-1)


def rrhf(values: GroupValues, settings: RrhfSection) -> torch.Tensor:
    """Σ_{r_i<r_j} max(0, l_i − l_j) − log q_θ(y_best), l = log q_θ / |y| (Yuan et al. 2023, arXiv 2304.05302).

    Example:
        l = (−2, −1), r = (1, 0), two tokens each: max(0, −1 + 2) + 4 = 5.
    """
    terms = relu(-margins(values.per_token))
    losses = torch.where(winners(values, "all"), terms, 0.0).sum(dim=(1, 2))
    return losses - settings.sft_weight * likelihood_of_one(values, settings) if settings.sft_weight else losses


def pro(values: GroupValues, settings: ProSection) -> torch.Tensor:
    """−Σ_k log[ e^{l_k/T_kk} / Σ_{i≥k} e^{l_i/T_ki} ] + SFT term (PRO, Song et al. 2023, arXiv 2306.17492).

    In the order of rewards r/γ, with T_ki = 1/(r_k − r_i) and T_kk = min_{i>k} T_ki, l = log q_θ / |y|. The SFT term is
    −λ(n−1)² l of the best output, or of gold.

    Example:
        l = (−1, −2), r = (2, 0), λ = 0: 1/T = 2, so −log[e^−2 / (e^−2 + e^−4)] = 0.1269.
    """
    likelihoods = values.per_token
    below = winners(values, "all")  # [b, n, n]: i is below k
    gaps = torch.where(below, margins(values.rewards / settings.temperature), 0.0)  # 1/T_ki
    own = likelihoods * gaps.amax(dim=-1)  # [b, n]
    others = masked_logsumexp(likelihoods[:, None, :] * gaps, below)
    terms = torch.where(below.any(dim=-1), torch.logaddexp(own, others) - own, 0.0).sum(dim=-1)
    if not settings.sft_weight:
        return terms
    best_lengths = values.lengths.gather(1, best(values)[:, None])[:, 0]
    likelihood = likelihood_of_one(values, settings) / (values.gold_lengths if settings.needs_gold else best_lengths)
    return terms - settings.sft_weight * likelihood * (values.valid.sum(dim=-1) - 1).square()


OBJECTIVES = {
    "rrhf": Definition(rrhf, ranked),
    "pro": Definition(pro, ranked),
    "plackett-luce": Definition(plackett_luce, ranked),
}
