"""Comparisons of a group's outputs: the higher reward wins, ties are dropped."""

import torch

from brain_align.common.config.objective_sections import Pairing
from brain_align.learner.objectives.masked import masked_mean
from brain_align.learner.objectives.values import GroupValues


def winners(values: GroupValues, pairing: Pairing) -> torch.Tensor:
    """Return the pairs of each group.

    * `consecutive`: disjoint neighbours in the order of sampling, among the complete outputs: 16 of 32.
    * `all`: every two outputs.
    * `best-worst`: one pair; the first of several with the same reward.

    Only `rewards` and `complete` are read, so the result does not depend on which outputs are trained on.

    Returns:
        [b, n, n] bool: output i (second dimension) beats output j (third).

    Example:
        r = (1, 3, 2, 2), consecutive: output 1 beats output 0; 2 and 3 tie, and are not a pair.
    """
    complete = values.complete
    if pairing == "consecutive":
        place = (complete.cumsum(dim=-1) - 1) // 2  # [b, n]
        candidates = place[:, :, None] == place[:, None, :]
    elif pairing == "best-worst":
        candidates = _first(values, highest=True)[:, :, None] & _first(values, highest=False)[:, None, :]
    else:
        candidates = torch.ones_like(complete)[:, :, None]
    both = complete[:, :, None] & complete[:, None, :]
    return both & candidates & (values.rewards[:, :, None] > values.rewards[:, None, :])


def in_a_pair(pairs: torch.Tensor) -> torch.Tensor:
    """Return the outputs that are in a pair.  # [b, n, n] -> [b, n]."""
    return pairs.any(dim=1) | pairs.any(dim=2)


def margins(scores: torch.Tensor) -> torch.Tensor:
    """Return the score of i minus that of j.  # [b, n] -> [b, n, n]."""
    return scores[:, :, None] - scores[:, None, :]


def mean_over_pairs(terms: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Return the mean over a group's pairs, 0 where it has none.  # [b, n, n] -> [b]."""
    return torch.where(pairs, terms, 0.0).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)


def win_rates(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Replace r_i by the mean over the other valid outputs j of σ(r_i − r_j) (SPO, Swamy et al. 2024, 2401.04056).

    Rewards are finite where valid; the result is between 0 and 1, and 0 where there is no other output.  # [b, n].

    Example:
        r = (1, 0, 0): σ(1) = 0.7311 for the first, (0.2689 + 0.5)/2 = 0.3845 for the others.
    """
    others = valid[:, None, :] & ~torch.eye(valid.shape[-1], dtype=torch.bool)  # [b, n, n]
    return masked_mean(margins(rewards).sigmoid(), others)


def _first(values: GroupValues, *, highest: bool) -> torch.Tensor:
    """Return the first complete output with the highest or lowest reward.  # [b, n] bool."""
    worthless = -torch.inf if highest else torch.inf
    rewards = torch.where(values.complete, values.rewards, worthless)
    place = rewards.argmax(dim=-1) if highest else rewards.argmin(dim=-1)
    return torch.zeros_like(values.complete).scatter(1, place[:, None], True)
