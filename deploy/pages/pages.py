"""What all HTML pages share: templates that escape whatever they are given, one style sheet, and data as JSON."""

import math
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from brain_align.common.printable import printable

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#aa4499",
    "#999933",
    "#6b6ecf",
    "#888888",
)
"""The colours of series, on pages and in plots: those of Okabe and Ito, distinct for colour-blind readers, that are
visible on white and on black; then four more, for comparisons of more than six methods."""


def templates(package: str) -> Environment:
    """Return the templates of a package, which may include those of this one (`page.css`).

    Whatever is put into them is escaped, control characters too; unknown names are errors. JSON (`tojson`) is compact
    and keeps its order.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader(__package__, "")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}
    return environment


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot represent, by None, at any depth."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
