"""Train several objectives on the same stored groups.

Trains every objective at every learning rate on the first seed, and at its best rate on the other seeds, all on the
same groups of one store and at the same budget; then writes tables, plots and paired tests (docs/compare.md). Running
it again on the same --out trains what is missing; more objectives, seeds, rates or group sizes are added to what was
asked for before, for all its methods alike.

Examples:
  brain compare compare-demo.yaml
  brain compare my.yaml --objectives brain,dpo-sft --seeds 0,1 --out runs/mine
"""

import argparse
from pathlib import Path

from brain_align.common.errors import UserError
from brain_align.deploy.commands.arguments import add_overrides, add_recipe
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.request import DEFAULT_OBJECTIVES, KL_BUDGETS, SWEPT, Options, parse_request
from brain_align.deploy.compare.plan.saved_request import read_request
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import output_path

GROUP = "Research"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_recipe(parser)
    parser.add_argument(
        "--objectives", metavar="A,B,…", help=f"NAME or NAME:setting=value; default: {','.join(DEFAULT_OBJECTIVES)}"
    )
    parser.add_argument("--seeds", metavar="0,1,…", help="learning rates are chosen on the first; default: 0,1,2")
    parser.add_argument(
        "--learning-rates",
        metavar="X,Y,…",
        help="the grid of every objective; default: 1/3, 1 and 3 times the recipe's rate",
    )
    parser.add_argument("--n", metavar="2,4,…", help="also train on only the first 2, 4, … outputs of each group")
    parser.add_argument(
        "--n-objectives", metavar="A,B,…", help=f"the objectives that --n applies to; default: {','.join(SWEPT)}"
    )
    parser.add_argument("--pairs", metavar="STORE", help="human preference pairs, for dpo")
    parser.add_argument(
        "--kl-budgets",
        metavar="B,…",
        help="also compare the best versions within these distances from the prior, KL(q‖p) in nats, or none; default: "
        + ",".join(f"{budget:g}" for budget in KL_BUDGETS),
    )
    parser.add_argument(
        "--read",
        type=int,
        metavar="N",
        help="write the outputs of N random test prompts to answers.md, for a person to read; they may be offensive",
    )
    parser.add_argument(
        "--parallel", type=int, metavar="K", help="runs trained side by side; default: 2, if the cluster has room"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/comparisons/NAME, with the recipe's name"
    )
    add_overrides(parser)
    parser.set_defaults(resumes=True)


def run(options: argparse.Namespace) -> None:
    """Train what is missing, and report."""
    if options.parallel is not None and options.parallel < 1:
        raise UserError(f"--parallel {options.parallel}: at least one training run must run at a time; give 1 or more.")
    recipe = load_recipe(options.recipe, options.overrides)
    directory = ComparisonDirectory(output_path(str(options.out or f"runs/comparisons/{recipe.name}")))
    asked = Options(
        objectives=options.objectives,
        seeds=options.seeds,
        learning_rates=options.learning_rates,
        group_sizes=options.n,
        swept=options.n_objectives,
        pairs=options.pairs,
        kl_budgets=options.kl_budgets,
        read=options.read,
    )
    request = parse_request(recipe, asked, read_request(directory.request))
    from brain_align.deploy.compare.compare import compare  # Ray and torch take seconds

    compare(recipe, request, directory, options.parallel, PlainConsole())
