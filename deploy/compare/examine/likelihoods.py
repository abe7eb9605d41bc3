"""Figures of a policy from log-probabilities and rewards of stored groups; pure functions on arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float64]
"""One number per output of a group; NaN where there is none.  # [n]"""


@dataclass(frozen=True)
class Examination:
    """A policy's likelihoods on held-back groups, and on those of the first round if it trained on these.

    "Chosen" is a group's output with the highest reward, "rejected" the one with the lowest; drift is the mean of
    log q − log p, nats.

    Figures of rewards are None if no group has outputs with different rewards.
    """

    # share of the pairs with different rewards in which log q is higher for the higher reward.
    ranking_accuracy: float | None
    # the same for the exact posterior p·exp(r/γ), the target of the training (idealized, in arXiv 2405.19534). γ is the
    # base recipe's, even for a method with a γ of its own. It is not an upper bound: it depends on p, and a policy may
    # rank the pairs better.
    ideal_ranking_accuracy: float | None
    # held_back_chosen_drift, held_back_rejected_drift: on prompts on which no method trained.
    held_back_chosen_drift: float | None
    held_back_rejected_drift: float | None
    # trained_chosen_drift, trained_rejected_drift: on the first round's groups; None for a method that trained on human
    # pairs instead.
    trained_chosen_drift: float | None
    trained_rejected_drift: float | None
    # top_k_entropy, top_k_mass: of next tokens, see `Likelihoods`; over-optimisation shows as a fall of both.
    top_k_entropy: float
    top_k_mass: float


@dataclass(frozen=True)
class StoredValues:
    """Rewards and prior log-probabilities of groups, one row per group."""

    group_ids: list[str]
    rewards: list[Row]
    prior: list[Row]

    def posterior(self, temperature: float) -> list[Row]:
        """Return the log-probabilities of p·exp(r/γ), up to a constant per group."""
        return [log_p + r / temperature for log_p, r in zip(self.prior, self.rewards, strict=True)]


def ranking_accuracy(logprobs: Sequence[Row], rewards: Sequence[Row]) -> float | None:
    """Return the share of output pairs with different rewards whose log-probabilities have the same order.

    All groups weigh equally, whatever the number of their pairs; None if no group has a pair.

    Example:
        log q = (−1, −2, −3), r = (3, 1, 2): of the pairs (3, 1), (3, 2), (2, 1) the first two are in order: 0.667.
    """
    shares = []
    for log_q, reward in zip(logprobs, rewards, strict=True):
        higher = reward[:, None] > reward[None, :]  # a comparison with NaN is false
        higher &= ~np.isnan(log_q)[:, None] & ~np.isnan(log_q)[None, :]
        if higher.any():
            shares.append(float((log_q[:, None] > log_q[None, :])[higher].mean()))
    return float(np.mean(shares)) if shares else None


def drifts(logprobs: Sequence[Row], values: StoredValues) -> tuple[float, float] | tuple[None, None]:
    """Return the mean log q − log p (nats) of the outputs with the highest and with the lowest reward.

    Groups whose outputs all have the same reward are skipped; two times None if every group was.
    """
    chosen, rejected = [], []
    for log_q, log_p, reward in zip(logprobs, values.prior, values.rewards, strict=True):
        known = ~np.isnan(log_q + log_p + reward)
        if not known.any() or np.ptp(reward[known]) == 0:
            continue
        drift = np.where(known, log_q - log_p, np.nan)
        chosen.append(drift[np.argmax(np.where(known, reward, -np.inf))])
        rejected.append(drift[np.argmin(np.where(known, reward, np.inf))])
    if not chosen:
        return None, None
    return float(np.mean(chosen)), float(np.mean(rejected))
