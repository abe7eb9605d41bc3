"""Distributional policy gradients (Korbak et al. 2022, arXiv 2206.00761; Parshakova et al. 2019).

The target is P/Z with P(y) = p(y|x) p(G=1|x,y). Unlike BRAIn these do not normalise within the group: Z is a running
mean of P/q' over all trained outputs (Khalifa et al. 2021, algorithm 1), one number for all prompts. With
w_i = P_i/(Z q'_i) and u_i = q_θ(y_i)/q'(y_i), both losses are estimates of KL(P/Z ‖ q_θ) from outputs of q', whose
gradients are the methods'.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from brain_align.common.config.objective_sections import GoodnessSection, PolicyGradientSection
from brain_align.learner.objectives.brain import log_goodness, posterior_metrics
from brain_align.learner.objectives.masked import masked_mean
from brain_align.learner.objectives.values import Definition, GroupValues


@dataclass(frozen=True)
class RunningMean:
    """The mean of `count` positive numbers, in log space; part of checkpoints."""

    log_mean: float = 0.0  # 0 before the first number
    count: int = 0

    def including(self, logs: torch.Tensor) -> "RunningMean":
        """Return the mean with further numbers, given by their logarithms.  # [any]."""
        if not len(logs):
            return self
        total = torch.logsumexp(logs.double(), dim=0).item()
        if self.count:
            before = self.log_mean + math.log(self.count)
            total = float(np.logaddexp(total, before))
        count = self.count + len(logs)
        return RunningMean(total - math.log(count), count)


def any_output(values: GroupValues, settings: PolicyGradientSection) -> torch.Tensor:
    """Use every output: nothing is compared within a group.  # [b, n]."""
    return values.valid


def log_importance(values: GroupValues, settings: GoodnessSection) -> torch.Tensor:
    """Return log P/q', not normalised.  # [b, n]."""
    return log_goodness(values.rewards, settings) + values.prior_logprobs - values.proposal_logprobs


def dpg(values: GroupValues, settings: PolicyGradientSection) -> torch.Tensor:
    """Mean of w_i (log w_i − log u_i): gradient −w_i ∇ log q_θ(y_i).

    Example:
        n = 2, r = (1, 0), q_θ = q' = p, Z = 1: w = (e, 1), loss = (e·1 + 1·0)/2 = 1.3591, and its gradient for
        log q_θ is −w/2 = (−1.3591, −0.5).
    """
    log_w, log_u = _weights(values, settings)
    return masked_mean(log_w.exp() * (log_w - log_u), values.valid)


def gdc_pp(values: GroupValues, settings: PolicyGradientSection) -> torch.Tensor:
    """GDC++: mean of w_i (log w_i − log u_i) − w_i + u_i ≥ 0: gradient −(w_i − u_i) ∇ log q_θ(y_i).

    The policy's own u_i is the baseline; its expectation changes nothing, since Σ_y q_θ(y) = 1.

    Example:
        n = 2, r = (1, 0), q_θ = q' = p, Z = 1: w = (e, 1), u = (1, 1), loss = ((e·1 − e + 1) + 0)/2 = 0.5, and its
        gradient for log q_θ is −(w − u)/2 = (−0.8591, 0).
    """
    log_w, log_u = _weights(values, settings)
    return masked_mean(log_w.exp() * (log_w - log_u) - log_w.exp() + log_u.exp(), values.valid)


def _weights(values: GroupValues, settings: PolicyGradientSection) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log w, without gradient, and log u.  # [b, n] each."""
    log_w = (log_importance(values, settings) - values.log_normaliser).detach()
    return log_w, values.policy_logprobs - values.proposal_logprobs


OBJECTIVES = {
    "dpg": Definition(dpg, any_output, posterior_metrics),
    "gdc++": Definition(gdc_pp, any_output, posterior_metrics),
}
