"""The page of one or several runs: everything that they left to look at, in one HTML file that needs no network."""

import base64
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from brain_align.common.durable import write_file
from brain_align.common.errors import first_line
from brain_align.deploy.pages.pages import COLOURS, finite, templates
from brain_align.deploy.report.charts import CHARTS, distances, histograms, other_figures, tables_of
from brain_align.deploy.report.run_data import RunData, read_run
from brain_align.deploy.report.samples import samples
from brain_align.deploy.report.tables import flattened, idle_shares, results, settings, times
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.stored_source import GroupLogprobs

_LOG = logging.getLogger(__name__)
_SCRIPTS = ("vendor/uplot.min.js", "report.js")


def report_at_the_end(directory: RunDirectory, tell: Callable[[str], None]) -> None:
    """Write the page of a run that has just finished; what keeps it from being written does not make the run fail."""
    try:
        write_file(directory.report, report_page([directory.root]))
    except Exception as error:  # noqa: BLE001 - the run's result is there, whatever is wrong with a page of it
        _LOG.exception("The run's page could not be written")
        tell(f"{directory.report} was not written: {first_line(error)}; brain report {directory.root} tries it again.")


def report_page(roots: Sequence[Path], logprobs: Mapping[Path, GroupLogprobs] | None = None) -> str:
    """Return the page of runs, which are named by their directories; `logprobs` see `stored_groups`.

    Raises:
        UserError: one of them holds no run that can be read.
    """
    labels = _labels(roots)
    runs = [read_run(root, label, (logprobs or {}).get(root)) for root, label in zip(roots, labels, strict=True)]
    scripts = [(files(__package__) / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    return (
        templates(__package__)
        .get_template("report.html")
        .render(
            runs=runs,
            title=f"{runs[0].recipe.name}: run report" if len(runs) == 1 else f"{', '.join(labels)}: runs side by side",
            written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
            colours=[COLOURS[place % len(COLOURS)] for place in range(len(runs))],
            results=results(runs),
            settings=settings(runs),
            flattened={run.label: flattened(run.recipe.model_dump(mode="json")) for run in runs},
            times={run.label: times(run) for run in runs},
            idle_shares={run.label: idle_shares(run) for run in runs},
            data=_data(runs),
            samples=samples(runs),
            hidden=[run.label for run in runs if not run.shows_texts],
            scripts=[Markup(script) for script in scripts],
            script_hashes=" ".join(f"'sha256-{_hash(script)}'" for script in scripts),
        )
    )


def _labels(roots: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths by which all runs differ, whatever is named twice."""
    depth = max(len(root.parts) for root in roots)
    for parts in range(1, depth + 1):
        labels = ["/".join(root.parts[-parts:]) for root in roots]
        if len(set(labels)) == len(set(roots)):
            break
    return labels


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _data(runs: list[RunData]) -> dict[str, Any]:
    """Return what the script draws: all figures as the run's own files have them, at full precision."""
    return finite(
        {
            "colours": COLOURS,
            "charts": [asdict(chart) for chart in CHARTS],
            "others": other_figures(runs),
            "runs": [
                {
                    "label": run.label,
                    "summary": run.summary,
                    "n": run.recipe.sampling.n,
                    "updates": run.recipe.algorithm.updates_per_round,
                    "tables": tables_of(run),
                    "test": run.metrics.test,
                    "distances": distances(run),
                    "histograms": histograms(run),
                }
                for run in runs
            ],
        }
    )
