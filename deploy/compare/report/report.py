"""The report of a comparison: compare.json, tables, plots and page from finished runs, and a summary on the console."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from markupsafe import Markup
from rich.measure import Measurement

from brain_align.common.config.recipe import Recipe
from brain_align.common.durable import write_file
from brain_align.common.errors import PipelineError
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan
from brain_align.deploy.compare.report.budget_tables import budget_findings_table, win_rates_table
from brain_align.deploy.compare.report.plots import CLOSEST, LEAST_R_SQUARED, draw
from brain_align.deploy.compare.report.tables import (
    all_tables,
    failures_table,
    findings_table,
    methods_table,
    sizes_table,
)
from brain_align.deploy.compare.results.comparison import Comparison, collect
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.pages.pages import finite, templates
from brain_align.deploy.pages.text_table import TextTable
from brain_align.deploy.plotting import INK, as_png, as_svg

_OUTCOME_CLASS = {"shown": "good", "same sign": "fair", "undecided": "fair", "not reproduced": "bad"}


def report(
    directory: ComparisonDirectory,
    recipe: Recipe,
    plan: ComparisonPlan,
    failed: dict[str, str],
    console: PlainConsole,
    warnings: Sequence[str] = (),
) -> None:
    """Write all results and print the most important; `warnings` are about reward models of little use.

    Raises:
        PipelineError: a method lacks a seed, after the results that exist were reported; or no run could be trained.
    """
    comparison = collect(directory, recipe, plan, failed, warnings)
    if not comparison.methods:
        raise PipelineError(f"No training run of {directory.root} succeeded. {' '.join(failed.values())}")
    write_file(directory.results, json.dumps(finite(asdict(comparison)), indent=1))
    figures = draw(comparison)
    drawn = {name: as_svg(figure, transparent=True).decode() for name, figure in figures.items()}
    for name, figure in figures.items():
        write_file(directory.plots / f"{name}.svg", drawn[name])
        write_file(directory.plots / f"{name}.png", as_png(figure))
    tables = all_tables(comparison)
    cautions = [f"**{warning}**\n" for warning in comparison.warnings]
    write_file(directory.tables, "\n".join([*cautions, *(table.for_markdown() for table in tables)]))
    write_file(directory.page, page(comparison, tables, drawn))
    for make in (methods_table, findings_table, win_rates_table, budget_findings_table, sizes_table, failures_table):
        table = make(comparison)
        if table.rows:
            _show(table, console)
    for warning in comparison.warnings:
        console.print(warning, soft_wrap=True)
    places = {"figures": directory.results, "page": directory.page, "plots": directory.plots}
    if directory.answers.exists():
        places["answers"] = directory.answers
    for label, path in places.items():
        console.print(f"{label:9} {path}", soft_wrap=True)
    lacking = comparison.lacking()  # of a seed or a group size; single learning rates may have failed
    if lacking:
        named = "; ".join(f"{name}: seed {', '.join(map(str, missing))}" for name, missing in lacking.items())
        raise PipelineError(f"The comparison is not complete, it lacks {named}; see the reasons above.")


def _show(table: TextTable, console: PlainConsole) -> None:
    """Print a table at its full width: a narrower terminal wraps lines, and a file has no width."""
    drawn = table.for_console()
    natural = Measurement.get(console, console.options.update(width=1000), drawn).maximum
    console.width = max(natural, console.width)
    console.print(drawn)
    if table.note:
        console.print(f"{table.note}\n", soft_wrap=True)


def page(comparison: Comparison, tables: Sequence[TextTable], plots: Mapping[str, str]) -> str:
    """Return the HTML page with all tables and with plots, which are SVG documents by name."""
    return (
        templates(__package__)
        .get_template("page.html")
        .render(
            comparison=comparison,
            protocol=comparison.protocol,
            rates=", ".join(f"{rate:g}" for rate in comparison.protocol.learning_rates),
            tables=tables,
            plots={name: Markup(inline_svg(name, svg)) for name, svg in plots.items()},
            outcome_class=_OUTCOME_CLASS,
            closest=f"{CLOSEST:g}",
            least_r_squared=f"{LEAST_R_SQUARED:g}",
        )
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
