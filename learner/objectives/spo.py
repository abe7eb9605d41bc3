"""SPO's rewards: how often an output wins against the others of its group (Swamy et al. 2024, arXiv 2401.04056)."""

import torch

from brain_align.learner.objectives.masked import masked_mean
from brain_align.learner.objectives.pairs import margins


def win_rates(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """r_i becomes the mean over the other valid outputs j of σ(r_i − r_j); then any objective may use it.

    Args:
        rewards: finite where valid.  # [b, n]
        valid: [b, n] bool

    Returns:
        [b, n], between 0 and 1; 0 where there is nothing to compare with.

    Example:
        r = (1, 0, 0): σ(1) = 0.7311 for the first, (0.2689 + 0.5)/2 = 0.3845 for the others.
    """
    others = valid[:, None, :] & ~torch.eye(valid.shape[-1], dtype=torch.bool)  # [b, n, n]
    return masked_mean(margins(rewards).sigmoid(), others)
