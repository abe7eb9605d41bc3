"""Which outputs of a group are compared with each other: the higher reward wins, ties are dropped."""

import torch

from brain_align.common.config.objective_sections import Pairing
from brain_align.learner.objectives.values import GroupValues


def winners(values: GroupValues, pairing: Pairing) -> torch.Tensor:
    """The pairs of each group.

    * `consecutive`: disjoint neighbours in the order of sampling, among the complete outputs: 16 of 32.
    * `all`: every two outputs.
    * `best-worst`: one pair; the first of each where several are.

    Args:
        values: rewards and completeness are read, so that it does not matter which outputs are left out of training.
        pairing: which outputs are candidates.

    Returns:
        [b, n, n] bool: output i (second dimension) beats output j (third).

    Example:
        r = (1, 3, 2, 2), consecutive: output 1 beats output 0; 2 and 3 tie, and are no pair.
    """
    complete = values.complete
    if pairing == "consecutive":
        place = (complete.cumsum(dim=-1) - 1) // 2  # [b, n]
        candidates = place[:, :, None] == place[:, None, :]
    elif pairing == "best-worst":
        candidates = _first(values, highest=True)[:, :, None] & _first(values, highest=False)[:, None, :]
    else:
        candidates = torch.ones_like(complete)[:, :, None] & torch.ones_like(complete)[:, None, :]
    both = complete[:, :, None] & complete[:, None, :]
    return both & candidates & (values.rewards[:, :, None] > values.rewards[:, None, :])


def in_a_pair(pairs: torch.Tensor) -> torch.Tensor:
    """The outputs that win or lose somewhere.  # [b, n, n] -> [b, n]."""
    return pairs.any(dim=1) | pairs.any(dim=2)


def margins(scores: torch.Tensor) -> torch.Tensor:
    """Score of i less that of j.  # [b, n] -> [b, n, n]."""
    return scores[:, :, None] - scores[:, None, :]


def mean_over_pairs(terms: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """The mean over a group's pairs, 0 where it has none.  # [b, n, n] -> [b]."""
    return torch.where(pairs, terms, 0.0).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)


def _first(values: GroupValues, *, highest: bool) -> torch.Tensor:
    """The first complete output of the highest or lowest reward.  # [b, n] bool."""
    worthless = -torch.inf if highest else torch.inf
    rewards = torch.where(values.complete, values.rewards, worthless)
    place = rewards.argmax(dim=-1) if highest else rewards.argmin(dim=-1)
    return torch.zeros_like(values.complete).scatter(1, place[:, None], True)
