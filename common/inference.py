"""Intervals and tests for figures over the same prompts and several seeds; pure functions on arrays."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

RESAMPLES = 10_000
"""Of a bootstrap; a p-value cannot be smaller than `SMALLEST_P`."""

SMALLEST_P = 2 / (RESAMPLES + 1)

_DRAWN_AT_ONCE = 1 << 20
"""The number of drawn prompts that are converted to 64 bits at once, to bound the memory."""


@dataclass(frozen=True)
class Estimate:
    """A mean with the half-width of its 95 % interval."""

    mean: float
    half_width: float


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a − b over seeds and prompts, with a bootstrap's 95 % interval and two-sided p-values."""

    difference: float
    # low, high: the interval, over prompts and seeds; with one seed it does not include the variation over seeds.
    low: float
    high: float
    # the bootstrap's. With few seeds it is too small if seeds differ much: a resample of three seeds of one sign never
    # has the other.
    p_value: float
    by_seed: list[float]  # the mean of each seed
    # of a t-test of these means against 0, which assumes only that seeds are exchangeable; None for one.
    p_seeds: float | None

    def turned(self) -> "PairedDifference":
        """Return the difference b − a."""
        return PairedDifference(
            -self.difference, -self.high, -self.low, self.p_value, [-value for value in self.by_seed], self.p_seeds
        )


def clustered_mean(values: Floats) -> Estimate:
    """Return the mean of values [seeds, prompts], with a normal interval for the variation over prompts and seeds.

    Seeds share their test prompts, so that outcomes on one prompt are not independent. The variance of the mean is
    that of the prompts' means over their number, plus that of the seeds' means over theirs. The first is at least what
    it would be if all outcomes were independent: seeds that happen to differ on every prompt make nothing more
    certain. For one seed and wins of 0 or 1 the interval is the paper's 1.96·√(p(1−p)/N).

    Example:
        One seed, 60 wins of 100 prompts: 0.6 ± 1.96·√(0.24/100) = 0.6 ± 0.096.
    """
    seeds, prompts = values.shape
    variance = max(values.mean(axis=0).var() / prompts, values.var() / values.size)
    if seeds > 1:
        variance += values.mean(axis=1).var(ddof=1) / seeds
    return Estimate(float(values.mean()), 1.96 * math.sqrt(variance))


def mcnemar(ours: Bools, theirs: Bools) -> float:
    """Return the exact two-sided p-value of McNemar's test for wins on the same prompts.  # [prompts] each.

    Under the hypothesis the discordant pairs are fair coin tosses.

    Example:
        9 prompts that only we win and 1 that only they win: 2·(1 + 10)/2¹⁰ = 0.0215.
    """
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    discordant, fewer = only_ours + only_theirs, min(only_ours, only_theirs)
    tail = sum(math.comb(discordant, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / 2**discordant)


def paired_bootstrap(differences: Floats, *, resamples: int = RESAMPLES) -> PairedDifference:
    """Return the mean of a − b [seeds, prompts], with a percentile bootstrap that draws both.

    Each resample draws seeds and, independently, prompts, and takes the mean over the drawn seeds on the drawn prompts
    (the pigeonhole bootstrap of crossed factors, arXiv 0712.1111).
    """
    seeds, prompts = differences.shape
    shares = np.random.default_rng(0).multinomial(seeds, [1 / seeds] * seeds, size=resamples) / seeds
    drawn = _drawn_prompts(prompts, resamples)
    rows = max(1, _DRAWN_AT_ONCE // prompts)
    parts = [
        (shares[start : start + rows] * (drawn[start : start + rows] @ differences.T)).sum(axis=1) / prompts
        for start in range(0, resamples, rows)
    ]
    means = np.concatenate(parts)
    low, high = np.quantile(means, [0.025, 0.975])
    below, above = (np.sum(means <= 0) + 1) / (resamples + 1), (np.sum(means >= 0) + 1) / (resamples + 1)
    of_seeds = differences.mean(axis=1)
    return PairedDifference(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, 2 * min(below, above))),
        by_seed=of_seeds.tolist(),
        p_seeds=t_test(of_seeds) if seeds > 1 else None,
    )


@lru_cache(maxsize=2)  # a comparison has hundreds of differences over the same prompts
def _drawn_prompts(prompts: int, resamples: int) -> npt.NDArray[np.uint16]:
    """Return how often each resample draws each prompt, the same at every call.  # [resamples, prompts]."""
    generator = np.random.default_rng(1)
    counts = np.empty((resamples, prompts), np.uint16)
    for row in counts:
        row[:] = np.bincount(generator.integers(prompts, size=prompts), minlength=prompts)
    return counts


def t_test(values: Floats) -> float:
    """Return the two-sided p-value of Student's test that the mean of two or more values is 0.

    Example:
        (7.8, 4.5, 5.2): t = 5.833/1.003 = 5.82 with 2 degrees of freedom, p = 0.028.
    """
    error = values.std(ddof=1) / math.sqrt(len(values))
    if error == 0:
        return float(not values.any())
    return _beyond(abs(float(values.mean() / error)), len(values) - 1)


def _beyond(t: float, degrees: int) -> float:
    """Return Student's P(|T| > t) as a finite sum for whole degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * power / (power + 1)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(0.0, 1.0 - within)


@dataclass(frozen=True)
class OverOptimisation:
    """The curve d(a − b·log d) of gained reward against d = √KL(q‖p) (arXiv 2210.10760, 2406.02900)."""

    a: float
    b: float
    r_squared: float

    def gain(self, distance: Floats) -> Floats:
        """Return the gain at distances > 0."""
        return distance * (self.a - self.b * np.log(distance))


def fit_over_optimisation(distances: Floats, gains: Floats) -> OverOptimisation | None:
    """Fit d(a − b·log d), which is linear in a and b, to gains [points] over the prior by least squares.

    Distances [points], √KL in nats^½, that are not positive are left out. None for fewer than four different distances:
    two coefficients fit any two.
    """
    used = distances > 0
    d, gain = distances[used], gains[used]
    if len(np.unique(d)) < 4:
        return None
    (a, b), *_ = np.linalg.lstsq(np.stack([d, -d * np.log(d)], axis=1), gain, rcond=None)
    spread = float(np.sum((gain - gain.mean()) ** 2))
    left = float(np.sum((gain - d * (a - b * np.log(d))) ** 2))
    return OverOptimisation(float(a), float(b), 1 - left / spread if spread else 1.0)
