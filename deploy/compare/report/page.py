"""One page with all tables and plots, without anything from elsewhere."""

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from brain_align.deploy.compare.report.glossary import GLOSSARY
from brain_align.deploy.compare.report.plots import CLOSEST, LEAST_R_SQUARED
from brain_align.deploy.compare.report.text_table import TextTable
from brain_align.deploy.compare.results.comparison import Comparison
from brain_align.deploy.plotting import INK

_CAPTIONS = {
    "win-rates": "Train-RM win rate on test prompts with 95 % intervals; small strokes are single seeds.",
    "group-size": "Train-RM win rate against the number of outputs a prompt, with 95 % intervals. The methods' points "
    "stand beside each other so that all can be seen; n is the tick between them.",
    "reward-kl": "What each evaluated version of every cell with the full n gained in reward, against its distance "
    f"from the prior, on a logarithmic axis, where what is closer than {CLOSEST:g} stands at {CLOSEST:g}. Lines are "
    f"fits of d(a − b·log d); one with R² below {LEAST_R_SQUARED:g} is left out, and the table has its coefficients.",
    "truth-kl": "The same for the ground truth, which nobody was trained on: where it falls while the reward rises, "
    f"the reward model is over-optimised. Fits with R² below {LEAST_R_SQUARED:g} are left out here too.",
    "learning-rates": "Validation win rate over the grid, on the first seed; filled: the rate that the method is "
    "reported at.",
    "drift": "Change of the log-likelihood, log q − log p, of the best and the worst output of held-back groups.",
}


def page(comparison: Comparison, tables: list[TextTable], plots: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        comparison: for title and protocol.
        tables: in their order.
        plots: SVG documents by name.
    """
    style = (Path(__file__).parent / "page.css").read_text()
    title = f"{escape(comparison.name)}: methods compared on the same groups"
    sections = "\n".join([*map(_table, tables[:2]), *(_plot(name, svg) for name, svg in plots.items())])
    rest = "\n".join(map(_table, tables[2:]))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{_protocol(comparison)}</p>
{_cautions(comparison)}
{_glossary()}
{sections}
{rest}
</main>
</body>
</html>
"""


def _protocol(comparison: Comparison) -> str:
    told = comparison.protocol
    rates = ", ".join(f"{rate:g}" for rate in told.learning_rates)
    seeds = ", ".join(map(str, told.seeds))
    return (
        f"Every method trained {told.rounds} × {told.updates_per_round} steps of {told.batch_prompts} groups, "
        f"{told.prompts_per_round} prompts a round with n = {told.n} outputs; all of a seed began with the same "
        f"groups. Learning rates {rates}: each method is shown at the one with its highest win rate on "
        f"{told.validation_prompts} validation prompts of seed {told.seeds[0]}. Seeds {seeds}; {told.test_prompts} "
        f"test prompts, on which nothing was chosen. Recipe digest {escape(comparison.recipe_digest)}."
    )


def _cautions(comparison: Comparison) -> str:
    """What a reader must know before believing a figure, a line each."""
    told = [_rates_at_edge(comparison), _failures(comparison), _few_seeds(comparison)]
    lines = "\n".join(f"<li>{escape(line)}</li>" for line in told if line)
    return f'<ul class="cautions">\n{lines}\n</ul>' if lines else ""


def _rates_at_edge(comparison: Comparison) -> str:
    labels = [label for label, figures in comparison.methods.items() if figures.rate_at_edge]
    if not labels:
        return ""
    return (
        f"Learning rate at the edge of the grid (*): {', '.join(labels)}. A better one may lie outside; "
        f"--learning-rates takes a wider grid."
    )


def _failures(comparison: Comparison) -> str:
    count = len(comparison.failed)
    if not count:
        return ""
    return f"{count} {'cell' if count == 1 else 'cells'} could not be trained; the last table says why."


def _few_seeds(comparison: Comparison) -> str:
    seeds = comparison.protocol.seeds
    if len(seeds) == 1:
        return f"One seed alone ({seeds[0]}): the intervals say nothing of what another seed would change."
    lacking = comparison.lacking()
    if not lacking:
        return ""
    named = "; ".join(f"{name} (lacks seed {', '.join(map(str, missing))})" for name, missing in lacking.items())
    return (
        f"Not over all {len(seeds)} seeds: {named}. The interval of one seed says nothing of what another would change."
    )


def _glossary() -> str:
    terms = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in GLOSSARY.items())
    return f"<details>\n<summary>What the words and marks mean</summary>\n<dl>\n{terms}\n</dl>\n</details>"


def _table(table: TextTable) -> str:
    head = "".join(f"<th scope='col'>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join(_row(row) for row in table.rows)
    note = f"<p class='note'>{escape(table.note)}</p>" if table.note else ""
    return f"""<section>
<h2>{escape(table.title)}</h2>
<div class="scroll"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody></table></div>
{note}
</section>"""


def _row(row: list[str]) -> str:
    first, *rest = row
    cells = "".join(f"<td{_class_of(cell)}>{escape(cell)}</td>" for cell in rest)
    return f"<tr><th scope='row'>{escape(first)}</th>{cells}</tr>"


def _class_of(cell: str) -> str:
    outcome = {"shown": "good", "same sign": "fair", "not reproduced": "bad"}.get(cell)
    return "" if outcome is None else f" class='{outcome}'"


def _plot(name: str, svg: str) -> str:
    return f"<figure>\n{inline_svg(name, svg)}\n<figcaption>{escape(_CAPTIONS[name])}</figcaption>\n</figure>"


def inline_svg(name: str, svg: str) -> str:
    """An SVG document as an element of a page: the reader's ink, and ids that no other plot has."""
    element = svg[svg.index("<svg") :]
    element = element.replace(INK, "currentColor")
    element = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', element)
    element = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{name}-\1"', element)
    element = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", element)
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
