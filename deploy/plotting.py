"""Style and file formats of all plots. The same figure gives the same bytes."""

import io
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#010203"
"""The colour of text and axes; nothing else has it, so that a page can replace it with the reader's text colour."""

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
    """Return a context in which figures are drawn in the common style."""
    return mpl.rc_context(_STYLE)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, size in inches; without pyplot, so that it needs no display."""
    return Figure(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure, *, transparent: bool = False) -> bytes:
    """Return a figure as an SVG document."""
    return _as_file(figure, format="svg", transparent=transparent, metadata={"Date": None})


def as_png(figure: Figure) -> bytes:
    """Return a figure as a PNG with 150 dots per inch."""
    return _as_file(figure, format="png", dpi=150)


def _as_file(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with plot_style():
        figure.savefig(buffer, **options)
    return buffer.getvalue()
