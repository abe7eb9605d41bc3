"""Train a recipe, or resume its run.

Checks everything first, then starts the services, runs the recipe to its end and shows the result. Running it again on
the same run directory resumes, or shows the result of a finished run; so does naming the run directory. A run that
trains from a store (sampler.replicas=0) is evaluated at its end where vLLM is installed.

Examples:
  brain run demo.yaml
  brain run my.yaml sampling.n=8 learner.learning_rate=2e-5 run.dir=runs/two
  brain run runs/two
"""

import argparse

from brain_align.deploy.commands.arguments import add_overrides, add_recipe
from brain_align.deploy.commands.scoring import progress_over
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import run_directory

GROUP = "Train"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_recipe(parser)
    add_overrides(parser)
    parser.set_defaults(resumes=True)


def run(options: argparse.Namespace) -> None:
    """Run a recipe."""
    recipe = load_recipe(options.recipe, options.overrides)
    from brain_align.deploy.pipeline import run_recipe  # Ray: not for a recipe that is refused

    console = PlainConsole()
    run_recipe(recipe, console)
    if not recipe.sampler.replicas and not recipe.store.replay:
        from brain_align.deploy.evaluate.stored_run import evaluate_stored_run

        evaluate_stored_run(run_directory(recipe), console, progress_over("outputs", console), asked=False)
