"""Versions within KL budgets: what is chosen, trained further, tested and reported. See `compared_runs` for figures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan
from brain_align.deploy.compare.report.budget_tables import FAILED, NONE, budget_tables
from brain_align.deploy.compare.report.frontier import points_of
from brain_align.deploy.compare.report.plots import draw
from brain_align.deploy.compare.report.report import page
from brain_align.deploy.compare.report.tables import all_tables
from brain_align.deploy.compare.results.choices import (
    best_within,
    choices,
    chosen_rates,
    known_runs,
    rate_within,
    read_all,
    unfinished,
    untested,
    why_unread,
)
from brain_align.deploy.compare.results.comparison import Comparison, collect
from brain_align.deploy.compare.results.matched import pareto_front
from brain_align.deploy.compare.train.progress import Progress
from tests.unit.deploy.compare.compared_runs import BRAIN, WARM, finish_budgets, finish_run, finished_comparison, plan
from tests.unit.deploy.compare.compared_runs import recipe as base_recipe

# On validation prompts, brain has KL 2.4 and 2.36 (versions 1, 2) at 1e-3, and 1.2 and 1.16 at 1e-4.
BUDGETS = (1.0, 1.18, 2.38, 5.0)


@pytest.fixture
def work() -> ComparisonPlan:
    return plan(budgets=BUDGETS)


@pytest.fixture
def directory(tmp_path: Path, work: ComparisonPlan) -> ComparisonDirectory:
    return finished_comparison(tmp_path, work)


def test_the_best_version_within_a_budget_and_its_rate(directory: ComparisonDirectory, work: ComparisonPlan) -> None:
    grid = read_all(directory, work.grid(BRAIN, 8))
    slow, fast = grid
    assert [best_within(fast, budget) for budget in (1.2, 2.36, 2.4, 5.0)] == [None, 2, 1, 1]
    assert [best_within(slow, budget) for budget in (0.0, 1.16, 1.2)] == [None, 2, 1], "the prior is no candidate"
    assert [rate_within(grid, budget) for budget in BUDGETS] == [None, 1e-4, 1e-3, 1e-3]


def test_other_seeds_are_trained_at_the_rates_of_all_budgets(
    directory: ComparisonDirectory, work: ComparisonPlan
) -> None:
    assert chosen_rates(directory, work, BRAIN, 8) == [1e-3, 1e-4]
    names = [run.name for run in known_runs(directory, work, BRAIN, 8)]
    assert names == [
        f"brain-lr{rate}-seed{seed}-n8" for rate, seed in (("0.0001", 0), ("0.001", 0), ("0.001", 1), ("0.0001", 1))
    ]
    assert chosen_rates(directory, plan(budgets=(5.0,)), BRAIN, 8) == [1e-3]
    assert unfinished(directory, work) and not unfinished(directory, plan())


def test_chosen_versions_are_tested_once(directory: ComparisonDirectory, work: ComparisonPlan) -> None:
    finish_run(directory, work.chosen(BRAIN, 8, 1e-4)[1], validation=30.0, wins=12)
    lacking = {name: [one.version for one in chosen] for name, chosen in untested(directory, work, BRAIN).items()}
    assert lacking == {f"brain-lr{rate}-seed{seed}-n8": [2] for rate in ("0.0001", "0.001") for seed in (0, 1)}
    chosen = choices(directory, work, BRAIN)
    assert {budget: [one.version for one in found] for budget, found in chosen.items()} == {
        1.0: [],
        1.18: [2, 2],
        2.38: [2, 2],
        5.0: [1, 1],
    }
    finish_budgets(directory, work)
    assert untested(directory, work, BRAIN) == {} and not unfinished(directory, work)


def test_a_seed_without_a_version_within_a_budget_is_left_out(
    directory: ComparisonDirectory, work: ComparisonPlan
) -> None:
    finish_run(directory, work.chosen(BRAIN, 8, 1e-4)[1], validation=60.0, wins=12)  # KL 2.4 and 2.36
    assert [one.finished.run.seed for one in choices(directory, work, BRAIN)[1.18]] == [0]


@pytest.fixture
def comparison(directory: ComparisonDirectory, work: ComparisonPlan) -> Comparison:
    finish_budgets(directory, work, wins=20)
    return collect(directory, base_recipe(), work, {})


def test_methods_within_budgets_have_test_figures_and_paired_tests(comparison: Comparison) -> None:
    none, small, large, all_ = comparison.budgets
    assert none.methods == {} and none.tests == [] and none.findings == []
    brain = small.methods[BRAIN.label]
    assert (brain.learning_rate, brain.versions, brain.seeds, brain.train_rm_win_rate) == (1e-4, [2, 2], [0, 1], 50.0)
    assert large.methods[BRAIN.label].learning_rate == 1e-3
    assert all_.methods[BRAIN.label].train_rm_win_rate == comparison.methods[BRAIN.label].train_rm_win_rate == 60.0
    gain = small.against_prior(BRAIN.label)
    assert gain is not None and gain.win_rate is not None
    assert gain.win_rate.difference == pytest.approx(50 - 20)
    assert gain.reward.difference == pytest.approx(2 * (20 - 8) / 40)
    assert gain.judges["truth"].difference == 0.0
    pairs = {(test.ours, test.theirs) for test in all_.tests}
    assert pairs == {
        (a, b) for a in ("prior", BRAIN.label, WARM.label) for b in ("prior", BRAIN.label, WARM.label) if a != b
    }


def test_tables_say_where_a_method_has_no_version(comparison: Comparison) -> None:
    tables = {table.title.split(" ")[0]: table for table in budget_tables(comparison)}
    rows = {row[0]: row[1:] for row in tables["Win"].rows}
    assert rows["brain"][0] == NONE
    assert rows["brain"][1].startswith("50.0 ± ") and rows["brain"][1].endswith(" (2.00)")
    assert tables["Win"].columns == ["method", "KL ≤ 1", "KL ≤ 1.18", "KL ≤ 2.38", "KL ≤ 5"]
    versions = {row[0]: row[1:] for row in tables["Learning"].rows}
    assert versions["brain"] == [NONE, "0.0001: 2, 2", "0.001: 2, 2", "0.001: 1, 1"]
    assert all(len(row) == len(table.columns) for table in budget_tables(comparison) for row in table.rows)


def test_a_version_that_could_not_be_tested_is_no_missing_version(
    directory: ComparisonDirectory, work: ComparisonPlan
) -> None:
    finish_budgets(directory, work)
    for seed in work.request.seeds:
        directory.tested(f"brain-lr0.0001-seed{seed}-n8", 2).unlink()
    comparison = collect(directory, base_recipe(), work, {})
    assert [budget.untested for budget in comparison.budgets] == [[], [BRAIN.label], [], []]
    rows = {row[0]: row[1:3] for row in budget_tables(comparison)[0].rows}
    assert rows["brain"] == [NONE, FAILED]


def test_why_a_method_has_no_answers_to_read(directory: ComparisonDirectory, work: ComparisonPlan) -> None:
    def why(budget: float, *failed: str) -> str:
        return why_unread(directory, work, BRAIN, budget, dict.fromkeys(failed, "reason"))

    slow, fast = (f"brain-lr{rate}-seed0-n8" for rate in ("0.0001", "0.001"))
    assert why(1.0) == "no version within 1 nats"
    assert (
        why(1.18, f"{slow}, test prompts")
        == f"version 2 of {slow} is within 1.18 nats, but its evaluation on test prompts failed"
    )
    assert why(1.18, slow).endswith("but its evaluation on test prompts did not finish")
    directory.examination(slow).unlink()
    assert why(1.18) == "no version within 1.18 nats; 1 of its 2 training runs did not finish"
    assert why(1.18, slow) == "no version within 1.18 nats; 1 of its 2 training runs failed"
    directory.examination(fast).unlink()
    assert why(5.0, slow, fast) == "2 of its 2 training runs failed"


def test_no_other_point_of_the_front_has_less_distance_and_more_gain() -> None:
    assert pareto_front([(3, 6), (1, 5), (2, 4), (2, 6), (4, 7)]) == [(1, 5), (2, 6), (4, 7)]
    assert pareto_front([]) == []


def test_the_frontier_is_drawn_for_each_figure(comparison: Comparison) -> None:
    figures = draw(comparison)
    assert {name for name in figures if name.startswith("frontier")} == {
        "frontier-win-rate",
        "frontier-reward",
        "frontier-truth",
    }
    (axes,) = figures["frontier-win-rate"].axes
    drawn = {str(line.get_label()): np.asarray(line.get_ydata(), np.float64).tolist() for line in axes.lines}
    assert drawn["brain"] == [50.0, 60.0], "KL 2 and 2.4 on test prompts"
    assert drawn["Pareto front"][:4] == [20.0, 40.0, 50.0, 60.0], "from the prior on, over all methods"
    assert [point.kl for point in points_of(comparison, "brain", "reward")] == pytest.approx([2.0, 2.4])
    assert not any(name.startswith("frontier") for name in draw(_without(comparison)))


def _without(comparison: Comparison) -> Comparison:
    return replace(comparison, budgets=[], protocol=replace(comparison.protocol, kl_budgets=[]))


def test_the_page_shows_and_explains_the_budgets(comparison: Comparison) -> None:
    tables = all_tables(comparison)
    drawn = {name: f"<svg>{name}</svg>" for name in draw(comparison)}
    document = page(comparison, tables, drawn)
    assert document.count("<svg>") == document.count("<figcaption>") == len(drawn)
    assert "within KL budgets." in document and "<dt>KL ≤ B, KL budget</dt>" in document
    assert "Pareto front" in document and "The same versions under truth" in document
    assert all(table.title in document for table in budget_tables(comparison) if table.rows)
    assert "within KL budgets." not in page(_without(comparison), [], {})


def test_progress_tells_minutes_per_run_and_the_end(tmp_path: Path) -> None:
    work, directory = plan(), ComparisonDirectory(tmp_path)
    progress = Progress(directory, work, 2, now=lambda: 0.0)
    assert progress.sentence() == "0 of 6 training runs are finished"
    for run in work.grid(BRAIN, 8):  # 30 s each
        finish_run(directory, run, validation=30.0, wins=12)
    said = progress.sentence()
    assert said.startswith(
        "2 of 6 training runs are finished, 0.5 minutes per run, 1 min left: expected end 1970-01-01"
    )
    finished = finished_comparison(tmp_path / "whole", plan(budgets=BUDGETS))
    assert Progress(finished, plan(), 2).sentence() == "6 of 6 training runs are finished"
    more = Progress(finished, plan(budgets=BUDGETS), 1).sentence()
    assert more.startswith("6 of 8 training runs are finished"), "other seeds need a second rate"
