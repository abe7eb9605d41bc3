"""The looks of a method in all plots, and what all plots share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from brain_align.deploy.compare.results.findings import SAME_METHOD
from brain_align.deploy.pages.pages import COLOURS
from brain_align.deploy.plotting import new_figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Their number and that of the colours have no common divisor: 70 methods differ in one or both."""

_LINES = ("-", "--", ":", "-.")
"""One for each repetition of the colours."""

BELOW: dict[str, Any] = {"loc": "outside lower center", "fontsize": 8, "ncols": 3}
"""The place of a legend below the axes."""


@dataclass(frozen=True)
class PlotStyle:
    """Colour, marker and line style, as matplotlib names them."""

    colour: str
    marker: str
    linestyle: str

    def line(self) -> dict[str, Any]:
        """Return the properties of a line with markers."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.linestyle}


def figure_with_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of this size in inches, and its axes."""
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    return figure, axes


def spread_out(axes: Axes) -> None:
    """Make the axis of distances logarithmic: most versions are close to the prior, and a few far."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def plot_styles(labels: Sequence[str]) -> dict[str, PlotStyle]:
    """Return the style of every method, the same in all plots; one method under two names has one style."""
    first = SAME_METHOD[0]
    found = {label: _style(place) for place, label in enumerate(legend_names(labels))}
    return {label: found[label if label in found else first] for label in labels}


def legend_names(labels: Sequence[str]) -> dict[str, str]:
    """Return the names in legends by label; a method under two names, whose points coincide, has one entry."""
    first, again = SAME_METHOD
    if first not in labels or again not in labels:
        return {label: label for label in labels}
    return {label: f"{first} (= {again})" if label == first else label for label in labels if label != again}


def _style(place: int) -> PlotStyle:
    return PlotStyle(
        COLOURS[place % len(COLOURS)], _MARKERS[place % len(_MARKERS)], _LINES[place // len(COLOURS) % len(_LINES)]
    )
