"""Clipped policy gradients on advantages within a group: RLOO and GSPO.

The ratio of a whole output, u_i = q_θ(y_i)/q'(y_i), corrects for the proposal that it was sampled from. As in PPO
(arXiv 1707.06347, eq. 7), an output stops counting once its ratio has left [1 − ε, 1 + ε] in its advantage's direction:

    loss_x = −mean_i min(u_i A_i, clip(u_i, 1 − ε, 1 + ε) A_i)

Unlike BRAIn's weights, advantages do not say where the policy should end: γ is the weight of the KL penalty (RLOO), or
nothing (GSPO, which normalises it away).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from brain_align.common.config.objective_sections import ClippedSection, GspoSection, RlooSection
from brain_align.learner.objectives.brain import two_or_more
from brain_align.learner.objectives.masked import masked_mean
from brain_align.learner.objectives.values import Definition, GroupValues

Terms = Callable[[GroupValues, Any], tuple[torch.Tensor, torch.Tensor]]
Columns = dict[str, torch.Tensor]

_SMALLEST_SPREAD = 1e-4  # added to a group's standard deviation, as in TRL


def unequal_rewards(values: GroupValues, settings: GspoSection) -> torch.Tensor:
    """Use all outputs of prompts whose rewards differ: without differences there is no advantage.  # [b, n]."""
    valid = values.valid
    highest = torch.where(valid, values.rewards, -torch.inf).amax(dim=-1, keepdim=True)
    lowest = torch.where(valid, values.rewards, torch.inf).amin(dim=-1, keepdim=True)
    return valid & (highest > lowest)


def rloo(values: GroupValues, settings: RlooSection) -> torch.Tensor:
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740, section 3.3), with PPO's clipping as in TRL.

    A_i = R_i − mean_{j≠i} R_j with R_i = r_i/γ − (log q'(y_i) − log p(y_i)): the KL to the prior, as sampled, is a part
    of the reward. It is the loss of the usual notation, r − β KL with β = γ, divided by γ.

    Example:
        n = 2, r = (1, 0), q_θ = q' = p: A = (1, −1), loss = −(1·1 + 1·(−1))/2 = 0, and its gradient for log q_θ is
        −A/2 = (−0.5, +0.5).
    """
    return _clipped(*_rloo_terms(values, settings), values.valid, settings)


def gspo(values: GroupValues, settings: GspoSection) -> torch.Tensor:
    """Group sequence policy optimisation (Zheng et al. 2025, arXiv 2507.18071, equations 5-7).

    A_i = (r_i − mean r)/(std r + 10⁻⁴), and the ratio is the geometric mean of the tokens', u_i^(1/|y_i|). The prior
    plays no part.

    Example:
        n = 2, r = (1, 0), q_θ = q', |y| = (2, 4): std r = 0.7071, A = (0.7070, −0.7070), loss = 0, and its gradient for
        log q_θ is −A/(2 |y|) = (−0.1768, +0.0884).
    """
    return _clipped(*_gspo_terms(values, settings), values.valid, settings)


def _rloo_terms(values: GroupValues, settings: RlooSection) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logarithms of the ratios, and the advantages.  # [b, n] each."""
    reward = values.rewards / settings.temperature - (values.proposal_logprobs - values.prior_logprobs)
    count = values.valid.sum(dim=-1, keepdim=True)
    # R_i − (Σ R − R_i)/(n − 1) = (R_i − mean R) n/(n − 1)
    advantages = _centred(reward, values.valid) * count / (count - 1).clamp(min=1)
    return values.policy_logprobs - values.proposal_logprobs, advantages


def _gspo_terms(values: GroupValues, settings: GspoSection) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logarithms of the ratios, and the advantages.  # [b, n] each."""
    centred = _centred(values.rewards / settings.temperature, values.valid)
    count = values.valid.sum(dim=-1, keepdim=True)
    squares = torch.where(values.valid, centred.square(), 0.0).sum(dim=-1, keepdim=True)
    advantages = centred / ((squares / (count - 1).clamp(min=1)).sqrt() + _SMALLEST_SPREAD)
    return (values.policy_logprobs - values.proposal_logprobs) / values.lengths, advantages


def _centred(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return rewards - masked_mean(rewards, valid)[:, None]


def _clipped(
    log_ratios: torch.Tensor, advantages: torch.Tensor, valid: torch.Tensor, settings: ClippedSection
) -> torch.Tensor:
    # The minimum of the two products is that of the ratio clipped on one side, which cannot overflow on that side.
    above = log_ratios.clamp(max=math.log1p(settings.epsilon_high))
    below = log_ratios.clamp(min=math.log1p(-settings.epsilon_low))
    return -masked_mean(torch.where(advantages < 0, below, above).exp() * advantages, valid)


def _metrics(terms: Terms, values: GroupValues, settings: ClippedSection, _rewards: torch.Tensor) -> Columns:
    """Return the share of outputs that have stopped counting.  # [b]."""
    log_ratios, advantages = terms(values, settings)
    ratios = log_ratios.exp()
    low = (ratios < 1 - settings.epsilon_low) & (advantages < 0)
    high = (ratios > 1 + settings.epsilon_high) & (advantages > 0)
    return {"clipped": masked_mean((low | high).float(), values.valid)}


OBJECTIVES = {
    "rloo": Definition(rloo, two_or_more, partial(_metrics, _rloo_terms)),
    "gspo": Definition(gspo, unequal_rewards, partial(_metrics, _gspo_terms)),
}
