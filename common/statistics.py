"""The statistics that results are reported with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WinRate:
    """Share of prompts whose output beats gold.

    Attributes:
        rate: wins / prompts, in percent.
        ci95: half-width of the 95 % normal interval, in percent.
        ties: share of exact ties, in percent.
        prompts: how many were compared.
    """

    rate: float
    ci95: float
    ties: float
    prompts: int


def win_rate(rewards: Sequence[float], gold_rewards: Sequence[float]) -> WinRate:
    """Train-RM win rate: r(output) strictly greater than r(gold), with `1.96 * sqrt(p (1 - p) / N)` (paper, Table 1).

    Raises:
        ValueError: nothing to compare, or lengths that differ.
    """
    pairs = list(zip(rewards, gold_rewards, strict=True))
    if not pairs:
        raise ValueError("a win rate needs at least one prompt")
    count = len(pairs)
    share = sum(ours > gold for ours, gold in pairs) / count
    ties = sum(ours == gold for ours, gold in pairs) / count
    half_width = 1.96 * math.sqrt(share * (1 - share) / count)
    return WinRate(100 * share, 100 * half_width, 100 * ties, count)
