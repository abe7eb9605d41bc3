"""DPO and its neighbours: losses of the margin between two outputs.

With s_i = log q_θ(y_i) − log p(y_i) and Δ = s_w − s_l for a winner w and a loser l; a prompt's loss is the mean
over its pairs (learner/objectives/pairs.py). r stands for r/γ, with γ = `objective.temperature`, which does not change
the order of outputs.
"""

import torch
from torch.nn.functional import logsigmoid, relu

from brain_align.common.config.objective_sections import (
    IpoSection,
    LogisticPairSection,
    PairSection,
    SimpoSection,
    SmoothedSection,
    WeightedPairSection,
)
from brain_align.learner.objectives.brain import log_goodness
from brain_align.learner.objectives.pairs import in_a_pair, margins, mean_over_pairs, winners
from brain_align.learner.objectives.values import Definition, GroupValues


def paired(values: GroupValues, settings: PairSection) -> torch.Tensor:
    """Use the outputs of all pairs.  # [b, n]."""
    return in_a_pair(winners(values, settings.pairs))


def dpo(values: GroupValues, settings: LogisticPairSection) -> torch.Tensor:
    """−log σ(βΔ) (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    Example:
        β = 0.1, s_w = 2, s_l = −1: Δ = 3, loss = −log σ(0.3) = 0.5544.
    """
    return _mean(-logsigmoid(settings.beta * margins(values.log_ratios)), values, settings)


def dpo_sft_iw(values: GroupValues, settings: WeightedPairSection) -> torch.Tensor:
    """−σ(r_w − r_l) log σ(Δ) − σ(r_l − r_w) log σ(−Δ) (BRAIn, eq. 22).

    Example:
        r_w − r_l = 1, Δ = 0.5: 0.7311·0.4741 + 0.2689·0.9741 = 0.6085.
    """
    margin = margins(values.log_ratios)
    wins = margins(log_goodness(values.rewards, settings)).sigmoid()
    return _mean(-wins * logsigmoid(margin) - (1 - wins) * logsigmoid(-margin), values, settings)


def cdpo(values: GroupValues, settings: SmoothedSection) -> torch.Tensor:
    """−(1−ε) log σ(βΔ) − ε log σ(−βΔ): conservative DPO (Mitchell 2023; arXiv 2403.00409).

    Example:
        β = 0.1, ε = 0.1, Δ = 3: 0.9·0.5544 + 0.1·0.8544 = 0.5844.
    """
    scaled = settings.beta * margins(values.log_ratios)
    epsilon = settings.epsilon
    return _mean(-(1 - epsilon) * logsigmoid(scaled) - epsilon * logsigmoid(-scaled), values, settings)


def rdpo(values: GroupValues, settings: SmoothedSection) -> torch.Tensor:
    """[−(1−ε) log σ(βΔ) + ε log σ(−βΔ)] / (1−2ε): robust DPO (Chowdhury et al. 2024, arXiv 2403.00409).

    An unbiased estimate of DPO's loss where a share ε of the labels is flipped.

    Example:
        β = 0.1, ε = 0.1, Δ = 3: (0.9·0.5544 − 0.1·0.8544) / 0.8 = 0.5169.
    """
    scaled = settings.beta * margins(values.log_ratios)
    epsilon = settings.epsilon
    terms = (-(1 - epsilon) * logsigmoid(scaled) + epsilon * logsigmoid(-scaled)) / (1 - 2 * epsilon)
    return _mean(terms, values, settings)


def ipo(values: GroupValues, settings: IpoSection) -> torch.Tensor:
    """(Δ − 1/(2τ))² (Azar et al. 2023, arXiv 2310.12036, eq. 17), on sums of log-probabilities, as printed.

    Example:
        τ = 0.1, Δ = 3: (3 − 5)² = 4.
    """
    return _mean((margins(values.log_ratios) - 1 / (2 * settings.tau)).square(), values, settings)


def simpo(values: GroupValues, settings: SimpoSection) -> torch.Tensor:
    """−log σ(β(l_w − l_l) − margin), l = log q_θ / |y| (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    Example:
        β = 2, margin = 1, l_w = −1, l_l = −2: −log σ(1) = 0.3133.
    """
    return _mean(-logsigmoid(settings.beta * margins(values.per_token) - settings.margin), values, settings)


def hinge(values: GroupValues, pairs: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the mean of max(0, 1 − scale·Δ) over pairs.  # [b, n], [b, n, n] -> [b]."""
    return mean_over_pairs(relu(1 - scale * margins(values.log_ratios)), pairs)


def _mean(terms: torch.Tensor, values: GroupValues, settings: PairSection) -> torch.Tensor:
    return mean_over_pairs(terms, winners(values, settings.pairs))


OBJECTIVES = {
    "dpo": Definition(dpo, paired),
    "dpo-sft": Definition(dpo, paired),
    "dpo-sft+iw": Definition(dpo_sft_iw, paired),
    "ipo": Definition(ipo, paired),
    "simpo": Definition(simpo, paired),
    "cdpo": Definition(cdpo, paired),
    "rdpo": Definition(rdpo, paired),
}
