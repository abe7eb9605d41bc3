"""The figures behind plots: by learning rate, by n, and by distance from the prior; pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brain_align.common.inference import OverOptimisation, fit_over_optimisation
from brain_align.deploy.compare.results.method_results import percentage, wins
from brain_align.deploy.compare.results.run_results import FinishedRun


@dataclass(frozen=True)
class GridPoint:
    """A method with n outputs per group at one learning rate, on the first seed, evaluated on validation prompts."""

    label: str
    n: int
    learning_rate: float
    win_rate: float | None
    mean_reward: float
    kl_to_prior: float


@dataclass(frozen=True)
class SizePoint:
    """A method trained on groups of n outputs, at its best learning rate for n, over seeds."""

    label: str
    n: int
    learning_rate: float
    seeds: list[int]
    win_rate: float | None
    win_rate_ci95: float | None
    mean_reward: float
    kl_to_prior: float


@dataclass(frozen=True)
class CurvePoint:
    """One evaluated version of one run: its distance √KL from the prior, and its gain in mean reward."""

    learning_rate: float
    seed: int
    version: int
    distance: float
    gain: float
    truth_gain: float | None


@dataclass(frozen=True)
class RewardCurve:
    """Reward against √KL, over all learning rates, seeds and evaluated versions of a method."""

    label: str
    points: list[CurvePoint]
    fit: OverOptimisation | None
    truth_fit: OverOptimisation | None


def grid_point(result: FinishedRun) -> GridPoint:
    """Return the point of one run of a grid."""
    best = result.validation[result.version]
    return GridPoint(
        result.run.method.label,
        result.run.n,
        result.run.learning_rate,
        best["train_rm_win_rate"],
        best["mean_reward"],
        best["kl_to_prior"],
    )


def size_point(results: Sequence[FinishedRun]) -> SizePoint:
    """Return the point of a method's runs with one group size, one run per seed."""
    run, rate = results[0].run, percentage(wins(results))
    return SizePoint(
        run.method.label,
        run.n,
        run.learning_rate,
        [result.run.seed for result in results],
        None if rate is None else rate.mean,
        None if rate is None else rate.half_width,
        float(np.mean([result.test["mean_reward"] for result in results])),
        float(np.mean([result.test["kl_to_prior"] for result in results])),
    )


def reward_curve(label: str, results: Sequence[FinishedRun]) -> RewardCurve:
    """Return the curve of all runs of a method with the recipe's n."""
    points = [point for result in results for point in _curve_points(result)]
    distances = np.array([point.distance for point in points])
    truths = [point for point in points if point.truth_gain is not None]
    return RewardCurve(
        label,
        points,
        fit_over_optimisation(distances, np.array([point.gain for point in points])),
        fit_over_optimisation(
            np.array([point.distance for point in truths]),
            np.array([point.truth_gain for point in truths], dtype=np.float64),
        ),
    )


def _curve_points(result: FinishedRun) -> list[CurvePoint]:
    start = result.validation[0]
    return [
        CurvePoint(
            result.run.learning_rate,
            result.run.seed,
            version,
            float(np.sqrt(max(0.0, figures["kl_to_prior"]))),
            figures["mean_reward"] - start["mean_reward"],
            None if figures["truth_quality"] is None else figures["truth_quality"] - start["truth_quality"],
        )
        for version, figures in sorted(result.validation.items())
        if version
    ]
