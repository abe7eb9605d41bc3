"""Compare gradient estimates where the posterior is known.

Trains brain, brain-no-baseline, dpg and gdc++ on toy problems of 64 outcomes whose posterior is known exactly, each at
its best learning rate, and measures the variance and bias of their gradients. Writes lab.json and plots (docs/lab.md).

Examples:
  brain lab --out runs/lab
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.deploy.console import PlainConsole

_FILE = "lab.json"
_SHOWN = {
    "kl_posterior_policy": ("KL(posterior ‖ policy) at the end, nats, at best learning rates (geometric mean)", ".1e"),
    "gradient_variance": ("Variance of the gradient at the prior (q' = p)", ".3f"),
    "gradient_variance_halfway": ("Variance of the gradient halfway to the posterior (q' = p)", ".3f"),
}

GROUP = "Research"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory for lab.json and the plots")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first problem and of its samples (default 0)")
    parser.add_argument("--worlds", type=int, default=8, help="number of problems, with consecutive seeds (default 8)")


def run(options: argparse.Namespace) -> None:
    """Measure, write and show the figures."""
    directory: Path = options.out.expanduser()
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} is negative; give 0 or more.")
    if options.worlds < 1:
        raise UserError(f"--worlds {options.worlds} is too few; give 1 or more.")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--out {directory} is a file; name a directory.")
    import torch  # and matplotlib: seconds

    from brain_align.deploy.lab.figures import measure
    from brain_align.deploy.lab.plots import write_plots
    from brain_align.deploy.lab.training import Budget

    torch.set_num_threads(1)  # tensors this small: more are slower
    figures = measure(range(options.seed, options.seed + options.worlds), Budget())
    directory.mkdir(parents=True, exist_ok=True)
    plots = write_plots(figures, directory)
    report = figures.as_json()
    write_file(directory / _FILE, json.dumps(report, indent=1))
    console = PlainConsole()
    _print(report, console)
    console.print(f"{directory / _FILE} and {len(plots)} plots", soft_wrap=True)


def _print(report: dict[str, Any], console: PlainConsole) -> None:
    console.print(f"By number of outputs, n: the mean over {len(report['seeds'])} problems, and the range.")
    for name, (title, form) in _SHOWN.items():
        console.print(title)
        console.print(_table(report[name], report[f"{name}_range"], form))


def _table(means: dict[str, dict[str, float]], ranges: dict[str, dict[str, list[float]]], form: str) -> Table:
    table = Table(box=None)
    table.add_column("")
    for method in means:
        table.add_column(method, justify="right")
    for n in next(iter(means.values())):
        table.add_row(f"n = {n}", *(format(means[method][n], form) for method in means))
        table.add_row("", *("–".join(format(end, form) for end in ranges[method][n]) for method in means), style="dim")
    return table
