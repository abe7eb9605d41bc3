"""A table as rows of text, for the console and for documents, and the formats of its figures."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from brain_align.common.inference import SMALLEST_P, PairedDifference
from brain_align.common.printable import printable


@dataclass(frozen=True)
class TextTable:
    """A table whose first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    def for_console(self) -> Table:
        """Return the table without its note, for rich to print."""
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def for_markdown(self) -> str:
        """Return the table and its note as a section of a Markdown document."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        drawn = "\n".join(f"| {' | '.join(map(_in_markdown, line))} |" for line in lines)
        return f"### {self.title}\n\n{drawn}\n" + (f"\n{self.note}\n" if self.note else "")


def _in_markdown(cell: str) -> str:
    """Return a text, perhaps an error of anything, as a cell that shows it: no HTML, image, link or further cell."""
    return re.sub(r"([\\`<>\[\]&])", r"\\\1", " ".join(printable(cell).replace("|", "/").split()))


def number(value: float | None, digits: int) -> str:
    """Format a figure; a dash if there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def each(values: Sequence[float]) -> str:
    """Format one figure per seed."""
    return " / ".join(f"{value:.1f}" for value in values)


def percent(share: float | None) -> str:
    """Format a share in percent; a dash if there is none."""
    return "–" if share is None else f"{100 * share:.1f}"


def with_interval(value: float | None, half_width: float | None, digits: int = 1) -> str:
    """Format a figure with the half-width of its 95 % interval; a dash if there is none."""
    return "–" if value is None or half_width is None else f"{value:.{digits}f} ± {half_width:.{digits}f}"


def p_value(value: float | None) -> str:
    """Format a p-value; a bootstrap cannot resolve values below `SMALLEST_P`."""
    if value is None:
        return "–"
    return f"≤ {SMALLEST_P:.1g}" if value <= SMALLEST_P else f"{value:.2g}"


def points(difference: PairedDifference, digits: int = 1) -> str:
    """Format a difference with its 95 % interval."""
    return f"{difference.difference:+z.{digits}f} [{difference.low:+z.{digits}f}, {difference.high:+z.{digits}f}]"
