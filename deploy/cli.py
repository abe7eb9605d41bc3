"""The `brain` command."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from brain_align.common.errors import PipelineError, UserError
from brain_align.deploy.commands import settings
from brain_align.deploy.commands.arguments import add_overrides, add_recipe
from brain_align.deploy.commands.compare import add_compare
from brain_align.deploy.commands.lab import add_lab_command
from brain_align.deploy.commands.live import add_scale, add_status
from brain_align.deploy.commands.store.parser import add_store_command
from brain_align.deploy.run.recipe_files import load_recipe

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do by default; without it, it warns
}

_RESUME = "run the same command again to resume"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 the pipeline failed, 2 bad input, 130 interrupted."""
    options = _parsed(arguments)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(handlers=[logging.NullHandler()])  # what libraries log is for the run's log file
    sys.path.insert(0, os.getcwd())  # where a user's own reward functions are
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(options.command(options))
    except UserError as error:
        return _fail(str(error), 2)
    except PipelineError as error:
        resume = f"\nNothing that was committed is lost: {_RESUME}." if options.resumes else ""
        return _fail(f"{error}{resume}", 1)
    except KeyboardInterrupt:
        return _fail(f"Interrupted: {_RESUME}." if options.resumes else "Interrupted.", 130)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; overrides may also stand after other options, where argparse by itself gives them up."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and ("overrides" not in options or any(argument.startswith("-") for argument in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="brain", description="Align language models with BRAIn (arXiv 2402.02479).")
    parser.add_argument("--version", action="version", version=f"brain-align {version('brain-align')}")
    parser.set_defaults(resumes=False)  # whether the same command goes on where it stopped; those that do say so
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run a recipe, or resume it",
        description="Run a recipe to its end. Running it again on the same run directory resumes, or shows the result.",
    )
    add_recipe(run)
    add_overrides(run)
    run.set_defaults(command=_run, resumes=True)
    add_status(commands)
    add_scale(commands)
    _add_export(commands.add_parser("export", help="write a run's policy for use elsewhere"))
    add_store_command(commands)
    doctor = commands.add_parser(
        "doctor",
        help="find what would not work in a run, before it begins",
        description="Check prompts, policy, the files of scorers and the cluster's size, and load every scorer. Says "
        "all that is wrong; status 2 if anything is.",
    )
    add_recipe(doctor)
    add_overrides(doctor)
    doctor.set_defaults(command=_doctor)
    reference = commands.add_parser("settings", help="look up the settings of a recipe")
    settings.add(reference)
    reference.set_defaults(command=settings.run)
    add_compare(commands)
    add_lab_command(commands)
    _add_score(commands.add_parser("score", help="rewards for a file of prompts and outputs"))
    return parser


def _add_score(score: argparse.ArgumentParser) -> None:
    score.description = "Score prompts and outputs with every scorer of a recipe, as in a run."
    add_recipe(score, "a YAML recipe; its `scorers` section is used")
    score.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help='rows {"prompt", "outputs": […]}: .jsonl or .parquet'
    )
    score.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help='gets {"prompt", "outputs", "scores": {NAME: […]}}'
    )
    score.add_argument("--force", action="store_true", help="replace an output that exists")
    add_overrides(score)
    score.set_defaults(command=_score)


def _add_export(export: argparse.ArgumentParser) -> None:
    export.description = "Write one version of a run's policy as an adapter (PEFT) or a whole model (transformers)."
    export.add_argument("run", type=Path, metavar="RUN", help="the run directory, e.g. runs/demo")
    export.add_argument("--version", default="best", help="best (on validation prompts; the default), newest or N")
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="a directory that does not exist yet")
    export.add_argument("--merge", action="store_true", help="add an adapter to its model's weights, and write those")
    export.set_defaults(command=_export)


def _run(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    from brain_align.deploy.pipeline import run_recipe  # Ray: not for a recipe that is refused

    run_recipe(recipe, Console())
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from brain_align.deploy.commands.doctor import examine

    return 2 if examine(load_recipe(options.recipe, options.overrides), Console()) else 0


def _score(options: argparse.Namespace) -> int:
    from brain_align.deploy.commands.score import score

    recipe = load_recipe(options.recipe, options.overrides)
    score(recipe, options.input, options.output, Console(), force=options.force)
    return 0


def _export(options: argparse.Namespace) -> int:
    from brain_align.deploy.commands.export import export  # torch and transformers

    print(export(options.run, options.version, options.output, merge=options.merge))
    return 0


def _fail(message: str, status: int) -> int:
    print(f"brain: {message}", file=sys.stderr)
    return status


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
