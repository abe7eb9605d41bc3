"""The report of a comparison: compare.json, tables, plots and page from finished runs, and a summary on the console."""

import json
import math
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.measure import Measurement

from brain_align.common.config.recipe import Recipe
from brain_align.common.durable import write_file
from brain_align.common.errors import PipelineError
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan
from brain_align.deploy.compare.report.page import page
from brain_align.deploy.compare.report.plots import draw
from brain_align.deploy.compare.report.tables import (
    all_tables,
    failures_table,
    findings_table,
    methods_table,
    sizes_table,
)
from brain_align.deploy.compare.report.text_table import TextTable
from brain_align.deploy.compare.results.comparison import Comparison, collect
from brain_align.deploy.plotting import as_png, as_svg


def report(
    directory: ComparisonDirectory, recipe: Recipe, plan: ComparisonPlan, failed: dict[str, str], console: Console
) -> None:
    """Write all results and print the most important.

    Raises:
        PipelineError: a method lacks a seed, after the results that exist were reported; or no run could be trained.
    """
    comparison = collect(directory, recipe, plan, failed)
    if not comparison.methods:
        raise PipelineError(f"No training run of {directory.root} succeeded. {' '.join(failed.values())}")
    write_file(directory.results, json.dumps(_finite(asdict(comparison)), indent=1))
    figures = draw(comparison)
    drawn = {name: as_svg(figure, transparent=True).decode() for name, figure in figures.items()}
    for name, figure in figures.items():
        write_file(directory.plots / f"{name}.svg", drawn[name])
        write_file(directory.plots / f"{name}.png", as_png(figure))
    tables = all_tables(comparison)
    write_file(directory.tables, "\n".join(table.for_markdown() for table in tables))
    write_file(directory.page, page(comparison, tables, drawn))
    for make in (methods_table, findings_table, sizes_table, failures_table):
        table = make(comparison)
        if table.rows:
            _show(table, console)
    for label, path in (("figures", directory.results), ("page", directory.page), ("plots", directory.plots)):
        console.print(f"{label:9} {path}", highlight=False, soft_wrap=True)
    _check_complete(comparison)


def _check_complete(comparison: Comparison) -> None:
    """Raise if a method lacks a result for a seed or a group size; single learning rates may have failed."""
    lacking = comparison.lacking()
    if lacking:
        named = "; ".join(f"{name}: seed {', '.join(map(str, missing))}" for name, missing in lacking.items())
        raise PipelineError(f"The comparison is not complete, it lacks {named}; see the reasons above.")


def _show(table: TextTable, console: Console) -> None:
    """Print a table at its full width: a narrower terminal wraps lines, and a file has no width."""
    drawn = table.for_console()
    natural = Measurement.get(console, console.options.update(width=1000), drawn).maximum
    console.width = max(natural, console.width)
    console.print(drawn)
    if table.note:
        console.print(f"{table.note}\n", highlight=False, soft_wrap=True)


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot represent, by None."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
