"""From finished cells to compare.json, the console, plots and the page."""

from rich.console import Console

from common.config.recipe import Recipe
from deploy.compare.layout import ComparisonDirectory
from deploy.compare.plan import Plan


def report(
    directory: ComparisonDirectory, recipe: Recipe, plan: Plan, failed: dict[str, str], console: Console
) -> None:
    """Stub."""
