"""The comparison's page: all tables and plots in one HTML file that loads nothing from elsewhere."""

import re
from collections.abc import Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brain_align.deploy.compare.report.plots import CLOSEST, LEAST_R_SQUARED
from brain_align.deploy.compare.report.text_table import TextTable
from brain_align.deploy.compare.results.comparison import Comparison
from brain_align.deploy.plotting import INK

_OUTCOME_CLASS = {"shown": "good", "same sign": "fair", "not reproduced": "bad"}


def page(comparison: Comparison, tables: Sequence[TextTable], plots: Mapping[str, str]) -> str:
    """Return the HTML page with all tables and with plots, which are SVG documents by name."""
    templates = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return templates.get_template("page.html").render(
        comparison=comparison,
        protocol=comparison.protocol,
        rates=", ".join(f"{rate:g}" for rate in comparison.protocol.learning_rates),
        tables=tables,
        plots={name: Markup(inline_svg(name, svg)) for name, svg in plots.items()},
        outcome_class=_OUTCOME_CLASS,
        closest=f"{CLOSEST:g}",
        least_r_squared=f"{LEAST_R_SQUARED:g}",
    )


def inline_svg(name: str, svg: str) -> str:
    """Return matplotlib's SVG as an element of the page, in the reader's text colour, with ids that begin with `name`.

    Without it, ids of two plots on one page would clash.
    """
    element = svg[svg.index("<svg") :]
    element = element.replace(INK, "currentColor")
    element = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', element)
    element = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{name}-\1"', element)
    element = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", element)
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
