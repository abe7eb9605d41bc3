"""Prepare a recipe's data and models, without running it.

Fine-tunes SFT policy and reward models from `prepare.base`, or builds the toy task, and prints how good the reward
models are on held-out pairs. `brain run` does the same first; whatever is there already is not made again, and a
preparation that was killed goes on where it was.

Examples:
  brain prepare deploy/recipes/hh-smollm.yaml prepare.base=models/SmolLM2-135M-Instruct data.path=data/hh
"""

import argparse
import json

from brain_align.common.errors import UserError
from brain_align.deploy.commands.arguments import add_overrides, add_recipe
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import resolve
from brain_align.deploy.run.start import reporter

GROUP = "Train"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_recipe(parser)
    add_overrides(parser)
    parser.set_defaults(resumes=True)


def run(options: argparse.Namespace) -> None:
    """Prepare a recipe's data and models."""
    recipe = load_recipe(options.recipe, options.overrides)
    if recipe.prepare is None:
        raise UserError(f"{options.recipe} has no `prepare` section: there is nothing to prepare (docs/prepare.md).")
    console = PlainConsole()
    resolved = resolve(recipe, reporter(console))
    world = resolved.world
    assert world is not None
    from brain_align.deploy.worlds.pretrained.report import misreadings, quality_table, read_facts, summary_lines

    facts = read_facts(world)
    if not facts:
        raise UserError(
            f"{world} lacks world.json, which a preparation writes last: files have been removed from it; delete the "
            f"directory, and run the same command again."
        )
    if recipe.prepare.base is None:
        console.print(json.dumps(facts, indent=1), soft_wrap=True)
    else:
        console.print(quality_table(facts))
        for line in (*summary_lines(facts), *misreadings(resolved.recipe)):
            console.print(line, soft_wrap=True)
    console.print(f"{world}", soft_wrap=True)
