"""Train a run's recorded steps again.

Trains on the same groups in the same order: with the run's own settings to the same weights, or with another objective
or learner. Running it again on the same output resumes. The run is only read, and nothing is sampled, except that with
--evaluate the result is evaluated on test prompts at the end (brain evaluate).

Examples:
  brain store replay runs/demo --output runs/replayed
  brain store replay runs/demo --output runs/dpo --evaluate objective.name=dpo-sft
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.uris import shown
from brain_align.deploy.commands.arguments import add_overrides
from brain_align.deploy.commands.scoring import progress_over
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.recipe_files import overridden
from brain_align.deploy.run.resolve import run_directory
from brain_align.deploy.run.stored_source import open_source

_CHANGEABLE = ("objective.", "learner.", "prior.", "ray.", "timeouts.", "prepare.cache=")

GROUP = "Use"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--output", required=True, type=Path, metavar="RUNDIR", help="the new run's directory")
    parser.add_argument("--evaluate", action="store_true", help="evaluate the result on test prompts; needs vLLM")
    add_overrides(parser, "settings of objective and learner that replace the run's")
    parser.set_defaults(resumes=True)


def run(options: argparse.Namespace) -> None:
    """Train the steps again."""
    recipe = replay_recipe(options.run, options.output, options.overrides)
    from brain_align.deploy.pipeline import run_recipe  # Ray: not for what is refused

    console = PlainConsole()
    run_recipe(recipe, console)
    if options.evaluate:
        from brain_align.deploy.evaluate.stored_run import evaluate_stored_run

        evaluate_stored_run(run_directory(recipe), console, progress_over("outputs", console), asked=True)


def replay_recipe(run: str, output: Path, overrides: Sequence[str]) -> Recipe:
    """Return the recipe that trains a run's recorded steps again, in another run directory.

    A place that is not a run directory, and overrides of more than how the steps are trained, are refused.
    """
    source = open_source(run)
    if source.recipe is None or source.directory is None:
        without = f"{shown(run)} is a store without its run's recipe; name the run directory."
        raise UserError(source.location.problem or without)
    settings: dict[str, Any] = source.recipe.model_dump(mode="json")
    if refused := [override for override in overrides if not override.startswith(_CHANGEABLE)]:
        raise UserError(
            f"{', '.join(map(repr, refused))}: a replay trains the steps as they were sampled, so that only "
            f"objective.* and learner.* (and resources) can differ; for anything else: brain run RECIPE "
            f"sampler.replicas=0 store.uri={shown(run)}."
        )
    settings["run"] = {"dir": str(output)}
    settings["sampler"]["replicas"] = 0
    settings["store"] = {"uri": str(source.directory.root), "replay": True}
    return overridden(settings, overrides, f"the recipe of {run}")
