"""Write a page of one or several runs.

Writes one HTML page that needs no network: before and after with intervals, learning curves, distributions, samples,
warnings, settings and time; several runs stand side by side. `brain run` writes it at its end, too (report.html in the
run directory). Runs may still be going, or have failed: the page says so (docs/report.md).

Examples:
  brain report runs/demo
  brain report runs/one runs/two --output two-runs.html
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from brain_align.common.durable import write_file
from brain_align.deploy.commands.output import check_output, new_output, writing
from brain_align.deploy.console import say

if TYPE_CHECKING:
    from brain_align.deploy.run.stored_source import GroupLogprobs

GROUP = "Inspect"
_SEVERAL = Path("report.html")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory, e.g. runs/demo")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: report.html in the run directory; of several runs, here"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing --output")
    parser.add_argument(
        "--policy", type=int, metavar="N", help="compute β of the stored groups under version N of each run's policy"
    )


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    roots = list(dict.fromkeys(root.absolute() for root in options.runs))
    output = options.output or (None if len(roots) == 1 else _SEVERAL)
    if output is not None:
        check_output(output, force=options.force)
    from brain_align.deploy.report.report import report_page
    from brain_align.deploy.run.directory import RunDirectory

    logprobs = {} if options.policy is None else {root: _policy(root, options.policy) for root in roots}
    page = report_page(roots, logprobs)
    if output is None:
        output = RunDirectory(roots[0]).report
        with writing(output):
            write_file(output, page)
    else:
        with new_output(output, force=options.force) as temporary, writing(output):
            temporary.write_text(page, encoding="utf-8")
    say(f"report    {output}")


def _policy(root: Path, version: int) -> "GroupLogprobs":
    from brain_align.deploy.api.samples import policy_logprobs
    from brain_align.deploy.run.stored_source import open_source

    return policy_logprobs(open_source(str(root)), version)
