"""Finished runs of a comparison, made up: wins and rewards are what a test says they are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.deploy.compare.examine.likelihoods import Examination
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.methods import Method
from brain_align.deploy.compare.plan.request import Request
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan, TrainingRun
from brain_align.deploy.compare.results.choices import known_runs, untested
from brain_align.deploy.compare.results.run_results import (
    EvaluatedVersion,
    write_examination,
    write_table,
    write_tested,
)
from tests.unit.factories import recipe_settings

PROMPTS = 40
BRAIN, WARM = Method("brain", "brain"), Method("brain:temperature=2", "brain", ("temperature=2",))
EXAMINATION = Examination(0.6, 0.9, 1.0, -1.0, 2.0, -2.0, 0.8, 0.95)


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(recipe_settings(sampling={"n": 8}, learner={"learning_rate": 1e-3}, **changes))


def plan(
    seeds: Sequence[int] = (0, 1),
    rates: Sequence[float] = (1e-4, 1e-3),
    sizes: Sequence[int] = (),
    n: int = 8,
    budgets: Sequence[float] = (),
) -> ComparisonPlan:
    swept = (BRAIN.label,) if sizes else ()
    request = Request((BRAIN, WARM), tuple(seeds), tuple(rates), tuple(sizes), swept, kl_budgets=tuple(budgets))
    return ComparisonPlan(request, n)


def outcomes(wins: int, prompts: int = PROMPTS) -> pa.Table:
    """The first `wins` prompts are won by one unit of reward, the others lost by one."""
    gain = np.where(np.arange(prompts) < wins, 1.0, -1.0)
    gold = np.full(prompts, 2.0)
    columns = {
        "prompt_id": [f"p{number}" for number in range(prompts)],
        "log_ratio": [0.5] * prompts,
        "reward": gold + gain,
        "gold_reward": gold,
        "scores.truth": np.full(prompts, 0.7),
        "gold_scores.truth": np.full(prompts, 0.6),
    }
    return pa.table(columns)


def figures(win_rate: float, **changes: Any) -> dict[str, Any]:
    row = {
        "train_rm_win_rate": win_rate,
        "train_rm_win_rate_ci95": 1.0,
        "ties": 0.0,
        "mean_reward": win_rate / 50,
        "mean_gold_reward": 2.0,
        "truth_quality": win_rate / 100,
        "gold_truth_quality": 0.6,
        "kl_to_prior": win_rate / 25,
        "mean_tokens": 10.0,
        "ended": 100.0,
        "prompts": PROMPTS,
        "failed": 0,
    }
    return {**row, **changes}


def finish_run(directory: ComparisonDirectory, run: TrainingRun, *, validation: float, wins: int) -> None:
    """Write what a finished run leaves; its second of three versions is the best."""
    root = directory.run(run.name).root
    root.mkdir(parents=True)
    summary = {
        "best_version": 1,
        "before": figures(20.0),
        "after": figures(100 * wins / PROMPTS),
        "validation": {"0": figures(20.0), "1": figures(validation), "2": figures(validation - 1)},
        "seconds": {"total": 30.0},
    }
    (root / "summary.json").write_text(json.dumps(summary))
    write_table(directory.outcomes(run.name), outcomes(wins))
    write_examination(directory.examination(run.name), EXAMINATION)


def finish_seed(directory: ComparisonDirectory, seed: int) -> None:
    """Write what the sampling of a seed leaves of the prior."""
    write_table(directory.prior_outcomes(seed), outcomes(8))
    write_examination(directory.prior_examination(seed), EXAMINATION)


def finished_comparison(root: Path, work: ComparisonPlan) -> ComparisonDirectory:
    """All runs of a plan: brain is best at 1e-3 and wins 24 of 40, the other at 1e-4 and wins 16."""
    directory = ComparisonDirectory(root)
    merits = {(BRAIN.label, 1e-3): (60.0, 24), (WARM.label, 1e-4): (45.0, 16)}
    rates = {BRAIN: 1e-3, WARM: 1e-4}
    for method, rate in rates.items():
        for n in work.sizes(method):
            for run in [*work.grid(method, n), *work.chosen(method, n, rate)[1:]]:
                validation, wins = merits.get((method.label, run.learning_rate), (30.0, 12))
                finish_run(directory, run, validation=validation, wins=wins if run.n == work.n else wins - 4)
    for seed in work.request.seeds:
        finish_seed(directory, seed)
    return directory


def finish_budgets(directory: ComparisonDirectory, work: ComparisonPlan, wins: int = 20) -> None:
    """Train what KL budgets add to a finished comparison, and test the versions that they choose."""
    for method in work.request.methods:
        for run in known_runs(directory, work, method, work.n):
            if not directory.examination(run.name).exists():
                finish_run(directory, run, validation=30.0, wins=12)
        for chosen in untested(directory, work, method).values():
            for choice in chosen:
                test = figures(100 * wins / PROMPTS)
                write_tested(directory, EvaluatedVersion(choice.finished.run, choice.version, test, outcomes(wins)))
