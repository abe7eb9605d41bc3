"""`brain lab`: the objectives where the answer is known."""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.durable import write_file
from common.errors import UserError

_FILE = "lab.json"


def add_lab_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `brain lab`."""
    parser = commands.add_parser(
        "lab",
        help="compare gradient estimates in a world whose posterior is known exactly",
        description="Train brain, brain-no-baseline, dpg and gdc++ in a world of 64 outcomes, and measure variance and "
        "bias of their gradients. Writes lab.json and plots (docs/lab.md).",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets lab.json and the plots")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of what is drawn in it (default 0)")
    parser.set_defaults(command=_lab)


def _lab(options: argparse.Namespace) -> int:
    directory: Path = options.out.expanduser()
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} is negative; give 0 or more.")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--out {directory} is a file; name a directory.")
    import torch  # and matplotlib: seconds

    from deploy.lab.figures import measure
    from deploy.lab.plots import write_plots
    from deploy.lab.training import Budget

    torch.set_num_threads(1)  # tensors this small: more are slower
    figures = measure(options.seed, Budget())
    directory.mkdir(parents=True, exist_ok=True)
    plots = write_plots(figures, directory)
    write_file(directory / _FILE, json.dumps(figures.as_json(), indent=1))
    console = Console()
    console.print("KL(posterior ‖ policy) at the end by n, nats")
    console.print(_table(_by_count(figures.at_the_end()), ".1e"))
    for progress in (0.0, 0.5):
        console.print(f"Variance of the gradient by n, {progress:.0%} of the way to the posterior (q' = p)")
        console.print(_table(_by_count(figures.variances(progress)), ".3f"))
    console.print(f"{directory / _FILE} and {len(plots)} plots", highlight=False, soft_wrap=True)
    return 0


def _by_count(by_method: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    counts = next(iter(by_method.values()))
    return {f"n = {n}": {method: values[n] for method, values in by_method.items()} for n in counts}


def _table(rows: dict[str, dict[str, float]], form: str) -> Table:
    table = Table(box=None)
    table.add_column("")
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for label, values in rows.items():
        table.add_row(label, *(format(value, form) for value in values.values()))
    return table
