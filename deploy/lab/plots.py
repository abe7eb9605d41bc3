"""The laboratory's plots, each as SVG and PNG."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brain_align.common.durable import write_file
from brain_align.deploy.lab.figures import COUNTS, PROGRESS, LabFigures, Spread
from brain_align.deploy.lab.world import METHODS
from brain_align.deploy.plotting import as_png, as_svg, new_figure, plot_style

_COLOURS = dict(zip(METHODS, ("#0b6e4f", "#c8553d", "#8d99ae", "#3d5a80"), strict=True))
_TRAINED_N = 8  # of the curves along training


def write_plots(figures: LabFigures, directory: Path) -> list[Path]:
    """Write all plots into an existing directory; return their paths."""
    with plot_style():
        drawn = {
            "kl_posterior_policy": _divergences(figures),
            "gradient_variance": _by_count(figures, "variance", "variance of the gradient (trace)"),
            "gradient_relative_variance": _by_count(figures, "relative_variance", "variance / squared norm of mean"),
            "gradient_bias": _by_count(figures, "bias", "bias / norm of the exact gradient"),
        }
    files = {directory / f"{name}.svg": as_svg(figure) for name, figure in drawn.items()}
    files |= {directory / f"{name}.png": as_png(figure) for name, figure in drawn.items()}
    for path, content in files.items():
        write_file(path, content)
    return list(files)


def _divergences(figures: LabFigures) -> Figure:
    figure = new_figure(10, 3.6)
    by_round, by_count = figure.subplots(1, 2, sharey=True)
    for method in METHODS:
        rounds = figures.by_round(method, _TRAINED_N)
        _curve(by_round, method, range(len(rounds)), rounds)
        _curve(by_count, method, COUNTS, [figures.at_the_end(method, n) for n in COUNTS], marker="o")
    for axes in (by_round, by_count):
        axes.axhline(0.01, color="black", linewidth=0.6, linestyle=":")
    by_round.set(
        yscale="log",
        xlabel="proposal updates",
        ylabel="KL(posterior ‖ policy), nats",
        title=f"n = {_TRAINED_N}",
    )
    by_round.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_round.legend()
    figure.suptitle("each method at its best learning rate; geometric mean and range over worlds")
    by_count.set(xlabel="n", title="at the end")
    _count_ticks(by_count)
    return figure


def _by_count(figures: LabFigures, field: str, label: str) -> Figure:
    figure = new_figure(10, 3.6)
    rows: list[Axes] = list(figure.subplots(1, len(PROGRESS), sharey=True))
    for axes, progress in zip(rows, PROGRESS, strict=True):
        for method in METHODS:
            values = [figures.gradient(field, progress, method, n) for n in COUNTS]
            _curve(axes, method, COUNTS, values, marker="o")
        axes.set(yscale="log", xlabel="n", title=f"{progress:.0%} of the way")
        _count_ticks(axes)
    figure.suptitle(
        "the policy on its way from prior to posterior; the proposal is the prior; mean and range over worlds"
    )
    rows[0].set_ylabel(label)
    rows[0].legend()
    return figure


def _curve(axes: Axes, method: str, x: Sequence[int], spreads: Sequence[Spread], marker: str = "") -> None:
    """Draw the mean over worlds, and a band from the lowest to the highest."""
    colour = _COLOURS[method]
    axes.plot(x, [spread.mean for spread in spreads], marker=marker, markersize=3, label=method, color=colour)
    lows, highs = [spread.low for spread in spreads], [spread.high for spread in spreads]
    axes.fill_between(x, lows, highs, color=colour, alpha=0.15, linewidth=0)


def _count_ticks(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xticks(COUNTS, [str(n) for n in COUNTS])
    axes.minorticks_off()
