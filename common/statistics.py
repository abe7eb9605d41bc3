"""The statistics of reported results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WinRate:
    """Share of prompts whose output beats gold, in percent."""

    rate: float  # wins / prompts
    ci95: float  # half-width of the 95 % normal interval
    ties: float  # share of exact ties
    prompts: int  # number of compared prompts


def win_rate(rewards: Sequence[float], gold_rewards: Sequence[float]) -> WinRate:
    """Compute the win rate by training reward, as in the paper's Table 1.

    A win is r(output) strictly greater than r(gold); the interval is `1.96 * sqrt(p (1 - p) / N)`.

    Raises:
        ValueError: there is nothing to compare, or the lengths differ.
    """
    pairs = list(zip(rewards, gold_rewards, strict=True))
    if not pairs:
        raise ValueError("a win rate needs at least one prompt")
    count = len(pairs)
    share = sum(ours > gold for ours, gold in pairs) / count
    ties = sum(ours == gold for ours, gold in pairs) / count
    half_width = 1.96 * math.sqrt(share * (1 - share) / count)
    return WinRate(100 * share, 100 * half_width, 100 * ties, count)


@dataclass(frozen=True)
class Moments:
    """Count, mean and spread of numbers in batches, which merge without loss of precision (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean
    least: float = math.inf
    greatest: float = -math.inf

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """Compute the moments of numbers, none of them NaN."""
        if not len(values):
            return cls()
        mean = float(np.mean(values, dtype=np.float64))
        squares = float(np.sum((values.astype(np.float64) - mean) ** 2))
        return cls(len(values), mean, squares, float(values.min()), float(values.max()))

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not count:
            return self
        apart, share = other.mean - self.mean, other.count / count
        return Moments(
            count,
            self.mean + apart * share,
            self.squares + other.squares + apart**2 * self.count * share,
            min(self.least, other.least),
            max(self.greatest, other.greatest),
        )

    @property
    def std(self) -> float:
        """The population standard deviation."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0
