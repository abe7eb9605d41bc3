"""Goodness models: log p(G=1|x,y) from the reward, up to a constant a prompt."""

import torch
from torch.nn.functional import logsigmoid

from brain_align.common.config.objective_sections import GoodnessSection


def log_goodness(rewards: torch.Tensor, settings: GoodnessSection) -> torch.Tensor:
    """Rewards to log-goodness.

    γ (`objective.temperature`, 1 in the paper) divides the reward in both models: r/γ takes the place of r.
    With `bradley-terry` the posterior is then p·exp(r/γ)/Z, the optimum of RLHF at KL coefficient γ (eq. 23).

    * `bradley-terry`: r/γ; only ratios of goodness are known, and only they are needed (eq. 19).
    * `logistic`: log σ(r/γ), for an absolute reward model (eq. 15).

    Args:
        rewards: r(x, y).  # [b, n]
        settings: the goodness model and γ.

    Returns:
        log p(G=1|x,y).  # [b, n]

    Example:
        r = 2, γ = 1: bradley-terry gives 2, logistic log σ(2) = −0.1269.
    """
    scaled = rewards / settings.temperature
    return scaled if settings.goodness == "bradley-terry" else logsigmoid(scaled)
