"""The plots of a comparison, as matplotlib figures."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brain_align.common.inference import OverOptimisation
from brain_align.deploy.compare.report.frontier import frontiers
from brain_align.deploy.compare.report.plot_styles import (
    BELOW,
    COLOURS,
    PlotStyle,
    figure_with_axes,
    legend_names,
    plot_styles,
    spread_out,
)
from brain_align.deploy.compare.results.comparison import Comparison
from brain_align.deploy.compare.results.method_results import MethodFigures
from brain_align.deploy.compare.results.series import CurvePoint, RewardCurve
from brain_align.deploy.plotting import INK, plot_style

LEAST_R_SQUARED = 0.5
"""The smallest R² of a fit that is drawn."""

CLOSEST = 0.05
"""√nats; smaller distances from the prior are drawn here: a logarithmic axis has no 0, and so small a KL is noise."""

Plot = Callable[[Comparison], "Figure | None"]


def draw(comparison: Comparison) -> dict[str, Figure]:
    """Return the plots that have data, by name."""
    plots: dict[str, Plot] = {
        "group-size": group_size,
        "reward-kl": reward_against_distance,
        "truth-kl": truth_against_distance,
        "learning-rates": learning_rates,
        "drift": drift,
    }
    with plot_style():
        figures = {"win-rates": win_rates(comparison), **frontiers(comparison)}
        figures |= {name: plot(comparison) for name, plot in plots.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def win_rates(comparison: Comparison) -> Figure | None:
    """Plot the win rate (training reward) of each method: mean, interval, and each seed."""
    shown = [one for one in comparison.with_prior() if one.train_rm_win_rate is not None]
    if not shown:
        return None
    figure, axes = figure_with_axes(7, 0.9 + 0.36 * len(shown))
    styles = plot_styles(list(comparison.methods))
    for place, method in enumerate(shown):
        _interval(axes, place, method, styles.get(method.label, PlotStyle(INK, "o", "-")))
    axes.set_yticks(range(len(shown)), [method.label for method in shown])
    axes.invert_yaxis()
    axes.set_xlabel("win rate vs. reference (training reward), %")
    axes.grid(axis="x", alpha=0.25)
    return figure


def _interval(axes: Axes, place: int, method: MethodFigures, style: PlotStyle) -> None:
    rate, half_width = method.train_rm_win_rate, method.train_rm_win_rate_ci95
    axes.errorbar([rate or 0], [place], xerr=[half_width or 0], fmt=style.marker, color=style.colour, capsize=3)
    seeds = method.train_rm_win_rate_by_seed
    axes.plot(seeds, [place + 0.22] * len(seeds), linestyle="", marker="|", color=style.colour, alpha=0.7)


def group_size(comparison: Comparison) -> Figure | None:
    """Plot the win rate against n (paper, figure 2)."""
    known = [point for point in comparison.group_sizes if point.win_rate is not None]
    if not known:
        return None
    figure, axes = figure_with_axes(6, 3.6)
    styles = plot_styles(list(comparison.methods))
    labels = list(dict.fromkeys(point.label for point in known))
    for index, label in enumerate(labels):
        offset = float(2 ** (0.06 * (index - (len(labels) - 1) / 2)))  # on a logarithmic axis: error bars side by side
        points = [point for point in known if point.label == label]
        rates, errors = [point.win_rate or 0 for point in points], [point.win_rate_ci95 or 0 for point in points]
        places = [point.n * offset for point in points]
        axes.errorbar(places, rates, yerr=errors, capsize=3, label=label, **styles[label].line())
    sizes = sorted({point.n for point in known})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("outputs per prompt, n")
    axes.set_ylabel("win rate (training reward), %")
    axes.legend()
    return figure


def reward_against_distance(comparison: Comparison) -> Figure | None:
    """Plot the gain in reward against √KL, with the fitted curves."""
    return _against_distance(comparison, "gain in mean reward", lambda point: point.gain, lambda curve: curve.fit)


def truth_against_distance(comparison: Comparison) -> Figure | None:
    """Plot the gain in ground truth against √KL, where over-optimisation shows as a fall."""
    return _against_distance(
        comparison, "gain in ground truth", lambda point: point.truth_gain, lambda curve: curve.truth_fit
    )


def _against_distance(
    comparison: Comparison,
    what: str,
    value: Callable[[CurvePoint], float | None],
    fit: Callable[[RewardCurve], OverOptimisation | None],
) -> Figure | None:
    named = legend_names(list(comparison.methods))
    curves = [curve for curve in comparison.curves if curve.label in named and _known(curve, value)]
    if not curves:
        return None
    figure, axes = figure_with_axes(7, 5.2)
    styles = plot_styles(list(comparison.methods))
    for curve in curves:
        style = styles[curve.label]
        distances, gains = np.array(_known(curve, value)).T
        axes.plot(distances, gains, linestyle="", marker=style.marker, markersize=4.5, alpha=0.75, color=style.colour)
        drawn = _draw_fit(axes, fit(curve), distances, style)
        in_legend = style if drawn else replace(style, linestyle="")
        axes.plot([], [], label=named[curve.label], **in_legend.line())
    axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
    spread_out(axes)
    axes.set_xlabel("distance from the prior, √KL(q‖p), nats^½")
    axes.set_ylabel(what)
    figure.legend(**BELOW)
    return figure


def _known(curve: RewardCurve, value: Callable[[CurvePoint], float | None]) -> list[tuple[float, float]]:
    """Return the plotted points of a curve: distance and gain of each version."""
    return [(max(CLOSEST, point.distance), gain) for point in curve.points if (gain := value(point)) is not None]


def _draw_fit(axes: Axes, fit: OverOptimisation | None, distances: np.ndarray, style: PlotStyle) -> bool:
    """Draw a fit if it explains enough; return whether it does."""
    if fit is None or fit.r_squared < LEAST_R_SQUARED:
        return False
    span = np.geomspace(float(distances.min()), float(distances.max()), 100)
    axes.plot(span, fit.gain(span), color=style.colour, linestyle=style.linestyle)
    return True


def learning_rates(comparison: Comparison) -> Figure | None:
    """Plot the validation win rate at every learning rate of the grid; the chosen one is filled."""
    known = [point for point in comparison.grid if point.win_rate is not None]
    if len({point.learning_rate for point in known}) < 2:
        return None
    figure, axes = figure_with_axes(7, 4.6)
    styles = plot_styles(list(comparison.methods))
    for label, name in legend_names(list(comparison.methods)).items():
        style, own = styles[label], comparison.methods[label].learning_rate
        points = [point for point in known if point.label == label]
        rates, values = [point.learning_rate for point in points], [point.win_rate or 0 for point in points]
        axes.plot(rates, values, markerfacecolor="none", label=name, **style.line())
        chosen = [place for place in zip(rates, values, strict=True) if place[0] == own]
        axes.plot(*zip(*chosen, strict=True), linestyle="", marker=style.marker, color=style.colour)
    axes.set_xscale("log")
    axes.set_xticks(comparison.protocol.learning_rates, [f"{rate:g}" for rate in comparison.protocol.learning_rates])
    axes.minorticks_off()
    axes.set_xlabel("learning rate")
    axes.set_ylabel("validation win rate, %")
    figure.legend(**BELOW)
    return figure


def drift(comparison: Comparison) -> Figure | None:
    """Plot the drift of the log-likelihoods of a group's best and worst output."""
    methods = [one for one in comparison.methods.values() if one.examination.held_back_chosen_drift is not None]
    if not methods:
        return None
    figure, axes = figure_with_axes(7, 0.9 + 0.4 * len(methods))
    places = np.arange(len(methods))
    found = [method.examination for method in methods]
    for name, shift, colour in (("chosen", -0.18, COLOURS[2]), ("rejected", 0.18, COLOURS[1])):
        drifts = [getattr(one, f"held_back_{name}_drift") for one in found]
        axes.barh(places + shift, drifts, height=0.34, color=colour, label=name)
    axes.set_yticks(places, [method.label for method in methods])
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_xlabel("log q − log p of held-back groups, nats")
    axes.legend()
    return figure
