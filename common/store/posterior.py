"""BRAIn's weights of stored outputs (paper, equations 5-11 and 19-20), in numpy: tools need no torch for them.

The learner's own (learner/objectives/brain.py) are the same numbers, which a test checks.
"""

import numpy as np

from brain_align.common.config.objective_sections import GoodnessSection, ObjectiveBase


def log_weights(
    rewards: np.ndarray, prior: np.ndarray, proposal: np.ndarray, goodness: GoodnessSection, finished: np.ndarray
) -> np.ndarray:
    """Compute the logarithm of p(G=1|x,y) p(y|x) / q'(y|x), up to a constant.  # [n] float64.

    Rewards r(x, y), log p(y|x) and log q'(y|x) are [n], and so is `finished`, false for outputs that were cut at
    max_tokens. The result is NaN where one of the numbers is, and where the objective masks a cut output.
    """
    scaled = treated_rewards(rewards.astype(np.float64), finished, goodness) / goodness.temperature
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        gained = scaled if goodness.goodness == "bradley-terry" else -np.logaddexp(0.0, -scaled)
    return gained + prior.astype(np.float64) - proposal.astype(np.float64)


def masked(finished: np.ndarray, settings: ObjectiveBase) -> np.ndarray:
    """Return which outputs an objective gives no weight, in α and in β: cut ones, where it masks them.  # [n] bool."""
    return ~finished & (settings.truncated == "mask")


def treated_rewards(rewards: np.ndarray, finished: np.ndarray, settings: ObjectiveBase) -> np.ndarray:
    """Return rewards as an objective takes them: NaN for cut outputs that it masks.  # [n] float64, [n] bool -> [n].

    The learner does not train a group in which fewer than two outputs are left; here the last one keeps its reward.
    """
    penalised = rewards + np.where(finished, 0.0, settings.truncated_penalty or 0.0)
    return np.where(masked(finished, settings), np.nan, penalised)


def self_normalised(log_weights: np.ndarray) -> np.ndarray:
    """Compute the softmax over the finite values, NaN elsewhere: α, or β from log q_θ − log q'.  # [n]."""
    known = np.isfinite(log_weights)
    weights = np.full(log_weights.shape, np.nan)
    if known.any():
        exponentials = np.exp(log_weights[known] - log_weights[known].max())
        weights[known] = exponentials / exponentials.sum()
    return weights
