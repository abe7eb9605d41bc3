"""BRAIn's weights of stored outputs (paper, equations 5-11 and 19-20), in numpy: tools need no torch for them.

The learner's own (learner/objectives/brain.py) are the same numbers, which a test checks.
"""

import numpy as np

from brain_align.common.config.objective_sections import GoodnessSection


def log_weights(rewards: np.ndarray, prior: np.ndarray, proposal: np.ndarray, goodness: GoodnessSection) -> np.ndarray:
    """Compute the logarithm of p(G=1|x,y) p(y|x) / q'(y|x), up to a constant.  # [n] float64.

    Rewards r(x, y), log p(y|x) and log q'(y|x) are [n]. The result is NaN where one of them is.
    """
    scaled = rewards.astype(np.float64) / goodness.temperature
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        gained = scaled if goodness.goodness == "bradley-terry" else -np.logaddexp(0.0, -scaled)
    return gained + prior.astype(np.float64) - proposal.astype(np.float64)


def self_normalised(log_weights: np.ndarray) -> np.ndarray:
    """Compute the softmax over the finite values, NaN elsewhere: α, or β from log q_θ − log q'.  # [n]."""
    known = np.isfinite(log_weights)
    weights = np.full(log_weights.shape, np.nan)
    if known.any():
        exponentials = np.exp(log_weights[known] - log_weights[known].max())
        weights[known] = exponentials / exponentials.sum()
    return weights
