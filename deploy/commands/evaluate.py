"""Evaluate versions, adapters and models on held-out prompts.

Samples one output for each prompt from each WHAT, scores all with every scorer of the recipe, and compares them with
the references and with one another: rewards, win rates (also at equal length), KL to the prior, length, variety, with
intervals and paired tests (docs/evaluate.md). WHAT is a run directory (its best version), RUN@N or RUN@newest, an
adapter or a model as a directory or a hub id. Running it again continues where it stopped; nothing is sampled twice.

Examples:
  brain evaluate runs/demo
  brain evaluate runs/demo@3 runs/demo --greedy --prompts 500
  brain evaluate my-adapter org/model --recipe runs/demo scorers.second.kind=hh scorers.second.path=DIR
"""

import argparse
import re
from pathlib import Path

from brain_align.common.errors import UserError
from brain_align.deploy.commands.arguments import add_overrides
from brain_align.deploy.commands.scoring import progress_over
from brain_align.deploy.console import terminal
from brain_align.deploy.evaluate.candidates import parse, recipe_name

GROUP = "Inspect"

_SETTING = re.compile(r"[\w.-]+=")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("whats", nargs="+", metavar="WHAT", help="a run, RUN@VERSION, an adapter, a model, or a hub id")
    parser.add_argument(
        "--recipe", help="the recipe, or run, with prompts, sampling and scorers; default: that of the first run"
    )
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="the prompts; default: test")
    parser.add_argument(
        "--prompts", type=int, metavar="N", help="how many; default: evaluation.test_prompts (or validation_prompts)"
    )
    parser.add_argument("--greedy", action="store_true", help="also take the most probable tokens, besides sampling")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: evaluations/NAME, with the recipe's name")
    add_overrides(parser)
    parser.set_defaults(resumes=True)


def run(options: argparse.Namespace) -> None:
    """Evaluate."""
    given = [*options.whats, *options.overrides]  # in any order, since options may stand between them
    overrides = [one for one in given if _SETTING.match(one)]
    whats = [one for one in given if not _SETTING.match(one)]
    if not whats:
        raise UserError("Nothing to evaluate is named; give a run, an adapter or a model besides the settings.")
    if options.prompts is not None and options.prompts < 1:
        raise UserError(f"--prompts {options.prompts}: at least one prompt is needed; give 1 or more.")
    named = [parse(what) for what in whats]
    recipe_name(named, options.recipe)
    from brain_align.deploy.evaluate.evaluate import evaluate  # torch and transformers: not for what is refused
    from brain_align.deploy.evaluate.job import Options

    console = terminal()

    asked = Options(named, options.recipe, overrides, options.split, options.prompts, options.greedy, options.output)
    evaluate(asked, console, progress_over("outputs", console))
