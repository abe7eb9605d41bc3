"""The plots of a comparison, as matplotlib figures."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deploy.compare.comparison import Comparison
from deploy.compare.inference import OverOptimisation
from deploy.compare.results import MethodFigures
from deploy.compare.series import CurvePoint, RewardCurve
from deploy.plotting import INK, new_figure, plot_style

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c6bb1",
    "#7f7f7f",
    "#a6761d",
    "#666666",
)
"""Okabe and Ito's, told apart by colour-blind readers too, and some more."""

Plot = Callable[[Comparison], "Figure | None"]


def draw(comparison: Comparison) -> dict[str, Figure]:
    """All plots that have anything to show, by name."""
    plots: dict[str, Plot] = {
        "win-rates": win_rates,
        "group-size": group_size,
        "reward-kl": reward_against_distance,
        "truth-kl": truth_against_distance,
        "learning-rates": learning_rates,
        "drift": drift,
    }
    with plot_style():
        figures = {name: plot(comparison) for name, plot in plots.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def win_rates(comparison: Comparison) -> Figure | None:
    """Train-RM win rate of each method: mean, interval, and each seed."""
    shown = [one for one in (comparison.prior, *comparison.methods.values()) if one is not None]
    shown = [one for one in shown if one.train_rm_win_rate is not None]
    if not shown:
        return None
    figure, axes = _figure(7, 0.9 + 0.36 * len(shown))
    colours = _colours(comparison)
    for place, method in enumerate(shown):
        _interval(axes, place, method, colours.get(method.label, INK))
    axes.set_yticks(range(len(shown)), [method.label for method in shown])
    axes.invert_yaxis()
    axes.set_xlabel("train-RM win rate against gold, %")
    axes.grid(axis="x", alpha=0.25)
    return figure


def _interval(axes: Axes, place: int, method: MethodFigures, colour: str) -> None:
    rate, half_width = method.train_rm_win_rate, method.train_rm_win_rate_ci95
    axes.errorbar([rate or 0], [place], xerr=[half_width or 0], fmt="o", color=colour, capsize=3)
    seeds = method.train_rm_win_rate_by_seed
    axes.plot(seeds, [place + 0.22] * len(seeds), linestyle="", marker="|", color=colour, alpha=0.7)


def group_size(comparison: Comparison) -> Figure | None:
    """Win rate against n (paper, figure 2)."""
    known = [point for point in comparison.group_sizes if point.win_rate is not None]
    if not known:
        return None
    figure, axes = _figure(6, 3.6)
    colours = _colours(comparison)
    for label in dict.fromkeys(point.label for point in known):
        points = [point for point in known if point.label == label]
        rates, errors = [point.win_rate or 0 for point in points], [point.win_rate_ci95 or 0 for point in points]
        sizes = [point.n for point in points]
        axes.errorbar(sizes, rates, yerr=errors, marker="o", capsize=3, color=colours[label], label=label)
    sizes = sorted({point.n for point in known})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("outputs a prompt, n")
    axes.set_ylabel("train-RM win rate, %")
    axes.legend()
    return figure


def reward_against_distance(comparison: Comparison) -> Figure | None:
    """Gained reward against √KL, with the fitted curves."""
    return _against_distance(comparison, "gained mean reward", lambda point: point.gain, lambda curve: curve.fit)


def truth_against_distance(comparison: Comparison) -> Figure | None:
    """The same for the ground truth, where over-optimisation shows as a fall."""
    return _against_distance(comparison, "gained truth", lambda point: point.truth_gain, lambda curve: curve.truth_fit)


def _against_distance(
    comparison: Comparison,
    what: str,
    value: Callable[[CurvePoint], float | None],
    fit: Callable[[RewardCurve], OverOptimisation | None],
) -> Figure | None:
    curves = [curve for curve in comparison.curves if any(value(point) is not None for point in curve.points)]
    if not curves:
        return None
    figure, axes = _figure(7, 4.2)
    colours = _colours(comparison)
    for curve in curves:
        known = [(point.distance, gain) for point in curve.points if (gain := value(point)) is not None]
        distances, gains = np.array(known).T
        axes.plot(distances, gains, linestyle="", marker="o", markersize=4, alpha=0.6, color=colours[curve.label])
        _draw_fit(axes, fit(curve), distances, colours[curve.label], curve.label)
    axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.set_xlabel("distance from the prior, √KL(q‖p), nats^½")
    axes.set_ylabel(what)
    axes.legend(fontsize=8, ncols=2)
    return figure


def _draw_fit(axes: Axes, fit: OverOptimisation | None, distances: np.ndarray, colour: str, label: str) -> None:
    if fit is None:
        axes.plot([], [], color=colour, label=label)
        return
    span = np.linspace(max(1e-3, float(distances.min())), float(distances.max()), 100)
    axes.plot(span, fit.gain(span), color=colour, label=label)


def learning_rates(comparison: Comparison) -> Figure | None:
    """Validation win rate at every rate of the grid; the chosen one is filled."""
    known = [point for point in comparison.grid if point.win_rate is not None]
    if len({point.learning_rate for point in known}) < 2:
        return None
    figure, axes = _figure(7, 3.8)
    colours = _colours(comparison)
    for label, method in comparison.methods.items():
        points = [point for point in known if point.label == label]
        rates, values = [point.learning_rate for point in points], [point.win_rate or 0 for point in points]
        axes.plot(rates, values, marker="o", markerfacecolor="none", color=colours[label], label=label)
        chosen = [place for place in zip(rates, values, strict=True) if place[0] == method.learning_rate]
        axes.plot(*zip(*chosen, strict=True), linestyle="", marker="o", color=colours[label])
    axes.set_xscale("log")
    axes.set_xticks(comparison.protocol.learning_rates, [f"{rate:g}" for rate in comparison.protocol.learning_rates])
    axes.minorticks_off()
    axes.set_xlabel("learning rate")
    axes.set_ylabel("validation win rate, %")
    axes.legend(fontsize=8, ncols=2)
    return figure


def drift(comparison: Comparison) -> Figure | None:
    """Where the likelihoods of the best and of the worst output of a group went."""
    methods = [one for one in comparison.methods.values() if one.examination.held_back_chosen_drift is not None]
    if not methods:
        return None
    figure, axes = _figure(7, 0.9 + 0.4 * len(methods))
    places = np.arange(len(methods))
    seen = [method.examination for method in methods]
    _bars(axes, places - 0.18, [one.held_back_chosen_drift or 0 for one in seen], _COLOURS[2], "chosen")
    _bars(axes, places + 0.18, [one.held_back_rejected_drift or 0 for one in seen], _COLOURS[1], "rejected")
    axes.set_yticks(places, [method.label for method in methods])
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_xlabel("log q − log p of held-back groups, nats")
    axes.legend()
    return figure


def _bars(axes: Axes, places: np.ndarray, values: Sequence[float], colour: str, label: str) -> None:
    axes.barh(places, values, height=0.34, color=colour, label=label)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    return figure, axes


def _colours(comparison: Comparison) -> dict[str, str]:
    return {label: _COLOURS[index % len(_COLOURS)] for index, label in enumerate(comparison.methods)}
