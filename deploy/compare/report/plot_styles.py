"""What methods are recognised by in the plots of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from brain_align.deploy.compare.results.findings import SAME_METHOD

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Those of Okabe and Ito, told apart by colour-blind readers too, that can be seen on white and on black."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Their number has no divisor in common with that of the colours: 42 methods differ in one or both."""

_LINES = ("-", "--", ":", "-.")
"""One for each time that the colours begin again."""


@dataclass(frozen=True)
class PlotStyle:
    """Colour, marker and line style, as matplotlib names them."""

    colour: str
    marker: str
    linestyle: str

    def line(self) -> dict[str, Any]:
        """The properties of a line with markers."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.linestyle}


def plot_styles(labels: Sequence[str]) -> dict[str, PlotStyle]:
    """Of every method, the same in all plots; one method under two names has one style.

    Args:
        labels: of all methods of the comparison.
    """
    first = SAME_METHOD[0]
    found = {label: _style(place) for place, label in enumerate(legend_names(labels))}
    return {label: found[label if label in found else first] for label in labels}


def legend_names(labels: Sequence[str]) -> dict[str, str]:
    """What a legend calls the methods, by label; one method under two names, whose points coincide, is there once.

    Args:
        labels: of all methods of the comparison.
    """
    first, again = SAME_METHOD
    if first not in labels or again not in labels:
        return {label: label for label in labels}
    return {label: f"{first} (= {again})" if label == first else label for label in labels if label != again}


def _style(place: int) -> PlotStyle:
    return PlotStyle(
        COLOURS[place % len(COLOURS)], _MARKERS[place % len(_MARKERS)], _LINES[place // len(COLOURS) % len(_LINES)]
    )
