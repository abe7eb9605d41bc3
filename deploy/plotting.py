"""What all plots have in common: their looks, and how they become files. The same figure gives the same bytes."""

import io
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#010203"
"""Of text and axes: a colour that nothing else has, so that a page can make it the reader's own."""

_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "brain",  # without one, ids differ from file to file
    "legend.frameon": False,
}


def plot_style() -> AbstractContextManager[None]:
    """Within it, figures are drawn in our style."""
    return mpl.rc_context(_STYLE)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; not one of pyplot's, so that it needs no display."""
    return Figure(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure, *, transparent: bool = False) -> bytes:
    """An SVG document."""
    return _as_file(figure, format="svg", transparent=transparent, metadata={"Date": None})


def as_png(figure: Figure) -> bytes:
    """A PNG at 150 dots an inch."""
    return _as_file(figure, format="png", dpi=150)


def _as_file(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with plot_style():
        figure.savefig(buffer, **options)
    return buffer.getvalue()
