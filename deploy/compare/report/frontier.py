"""The plots of what methods gain for their distance from the prior, on test prompts, and of the Pareto front."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brain_align.common.inference import PairedDifference
from brain_align.deploy.compare.report.plot_styles import (
    BELOW,
    PlotStyle,
    figure_with_axes,
    legend_names,
    plot_styles,
    spread_out,
)
from brain_align.deploy.compare.results.comparison import Comparison
from brain_align.deploy.compare.results.matched import pareto_front
from brain_align.deploy.compare.results.method_results import PairedTest, VersionFigures
from brain_align.deploy.plotting import INK

NEAREST = 0.05
"""Nats; smaller distances from the prior are drawn here, where the logarithmic axis begins."""

WIN_RATE, REWARD = "win-rate", "reward"
"""The figures that every comparison has, beside those of its judges."""


@dataclass(frozen=True)
class Point:
    """A version, or one per seed: its distance from the prior and its figure, with 95 % intervals."""

    kl: float  # nats
    kl_ci95: float  # half-width
    value: float
    low: float
    high: float


def frontiers(comparison: Comparison) -> dict[str, Figure | None]:
    """Return the plots of win rate, reward and each judge against KL(q‖p), by name; none without KL budgets."""
    if not any(budget.methods for budget in comparison.budgets):
        return {}
    judges = {} if comparison.prior is None else comparison.prior.judges
    return {f"frontier-{what}": _frontier(comparison, what) for what in (WIN_RATE, REWARD, *judges)}


def _frontier(comparison: Comparison, what: str) -> Figure | None:
    named = legend_names(list(comparison.methods))
    styles = plot_styles(list(comparison.methods))
    points = {label: list(points_of(comparison, label, what)) for label in named}
    if not any(points.values()):
        return None
    figure, axes = figure_with_axes(7, 5.2)
    for budget in comparison.budgets:
        axes.axvline(budget.kl, color=INK, linewidth=0.6, alpha=0.2)
    for label, found in points.items():
        if found:
            _draw(axes, found, styles[label], named[label])
    everything = [point for found in points.values() for point in found]
    _draw_front(axes, everything, _of_prior(comparison, what))
    spread_out(axes)
    axes.set_xlabel("KL(q‖p) on test prompts, nats")
    axes.set_ylabel(_axis(what))
    figure.legend(**BELOW)
    return figure


def points_of(comparison: Comparison, label: str, what: str) -> Iterator[Point]:
    """Yield the different versions of a method that were tested, in order of distance: of all budgets, and its best."""
    found: dict[tuple[float, ...], Point] = {}
    for figures, test in _tested(comparison, label):
        point = _point(figures, test, what)
        if point is not None:
            found.setdefault((point.kl, point.value), point)
    yield from sorted(found.values(), key=lambda point: point.kl)


def _tested(comparison: Comparison, label: str) -> Iterator[tuple[VersionFigures, PairedTest | None]]:
    for budget in comparison.budgets:
        if label in budget.methods:
            yield budget.methods[label], budget.against_prior(label)
    if label in comparison.methods:
        yield comparison.methods[label], comparison.against_prior(label)


def _point(figures: VersionFigures, test: PairedTest | None, what: str) -> Point | None:
    kl = max(NEAREST, figures.kl_to_prior), figures.kl_to_prior_ci95
    if what == WIN_RATE:
        rate, half_width = figures.train_rm_win_rate, figures.train_rm_win_rate_ci95
        return None if rate is None or half_width is None else Point(*kl, rate, rate - half_width, rate + half_width)
    if test is None:
        return None
    gain: PairedDifference | None = test.reward if what == REWARD else test.judges.get(what)
    return None if gain is None else Point(*kl, gain.difference, gain.low, gain.high)


def _of_prior(comparison: Comparison, what: str) -> float | None:
    if what != WIN_RATE:
        return 0.0
    return None if comparison.prior is None else comparison.prior.train_rm_win_rate


def _draw(axes: Axes, points: list[Point], style: PlotStyle, name: str) -> None:
    places, values = [point.kl for point in points], [point.value for point in points]
    down = [max(0.0, point.value - point.low) for point in points]
    up = [max(0.0, point.high - point.value) for point in points]
    axes.plot(places, values, label=name, linewidth=1.2, markersize=6, **style.line())
    axes.errorbar(
        places,
        values,
        yerr=np.array([down, up]),
        xerr=[min(point.kl_ci95, point.kl - NEAREST / 2) for point in points],  # not to where a logarithm has no value
        fmt="none",
        ecolor=style.colour,
        elinewidth=0.8,
        alpha=0.55,
    )


def _draw_front(axes: Axes, points: list[Point], prior: float | None) -> None:
    """Draw the Pareto front: the most that any method reaches up to each distance, from the prior on."""
    start = [] if prior is None else [(NEAREST, prior)]
    front = pareto_front([*start, *((point.kl, point.value) for point in points)])
    if prior is not None:
        axes.axhline(prior, color=INK, linewidth=0.6, alpha=0.5, label="prior")
    kl, value = zip(*front, strict=True)
    farthest = max(point.kl for point in points)
    axes.step(
        [*kl, farthest], [*value, value[-1]], where="post", color=INK, linewidth=1, linestyle=":", label="Pareto front"
    )


def _axis(what: str) -> str:
    if what == WIN_RATE:
        return "win rate vs. reference (training reward), %"
    return "gain in mean reward over the prior" if what == REWARD else f"gain in {what} over the prior"
