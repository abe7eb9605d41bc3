"""The tables of methods within KL budgets."""

from collections.abc import Callable

from brain_align.common.inference import PairedDifference
from brain_align.deploy.compare.results.comparison import Comparison
from brain_align.deploy.compare.results.findings import Finding
from brain_align.deploy.compare.results.matched import Budget, BudgetFigures
from brain_align.deploy.compare.results.method_results import PairedTest
from brain_align.deploy.pages.text_table import TextTable, number, points, with_interval

NONE = "none"
"""Stands where no version of a method is within a budget."""
FAILED = "failed"
"""Stands where one is, and could not be evaluated on test prompts."""

Cell = Callable[[Budget, BudgetFigures], str]


def budget_tables(comparison: Comparison) -> list[TextTable]:
    """Return win rate, reward and each judge by method and KL budget, which versions these are, and the claims."""
    if not comparison.budgets:
        return []
    judges = {} if comparison.prior is None else comparison.prior.judges
    return [
        win_rates_table(comparison),
        _gains_table(comparison, "the training reward", lambda test: test.reward),
        *(_gains_table(comparison, name, _of_judge(name)) for name in judges),
        _versions_table(comparison),
        budget_findings_table(comparison),
    ]


def win_rates_table(comparison: Comparison) -> TextTable:
    """Return the win rate of each method within each KL budget, with its own distance on test prompts."""

    def cell(_budget: Budget, figures: BudgetFigures) -> str:
        rate = with_interval(figures.train_rm_win_rate, figures.train_rm_win_rate_ci95)
        return f"{rate} ({number(figures.kl_to_prior, 2)}){_seeds(comparison, figures)}"

    return _table(
        comparison,
        "Win rate (training reward) within KL budgets, % (KL(q‖p) on test prompts, nats)",
        cell,
        "Each method's version with the highest validation win rate among those whose KL on validation prompts is "
        "within the budget, at the learning rate that is best for the budget. None: no version of a finished run is "
        "within it; failed: it could not be evaluated on test prompts.",
    )


def _gains_table(
    comparison: Comparison, what: str, difference: Callable[[PairedTest], PairedDifference | None]
) -> TextTable:
    def cell(budget: Budget, figures: BudgetFigures) -> str:
        test = budget.against_prior(figures.label)
        found = None if test is None else difference(test)
        return "–" if found is None else f"{points(found, 3)}{_seeds(comparison, figures)}"

    return _table(
        comparison,
        f"Gain in {what} over the prior within KL budgets [95 %]",
        cell,
        "The same versions: difference of the means on the same test prompts, paired bootstrap.",
    )


def _of_judge(name: str) -> Callable[[PairedTest], PairedDifference | None]:
    return lambda test: test.judges.get(name)


def _versions_table(comparison: Comparison) -> TextTable:
    def cell(_budget: Budget, figures: BudgetFigures) -> str:
        return f"{figures.learning_rate:g}: {', '.join(map(str, figures.versions))}"

    return _table(
        comparison, "Learning rate and version of each seed within KL budgets", cell, "Version k is that after round k."
    )


def budget_findings_table(comparison: Comparison) -> TextTable:
    """Return the outcome of each claim within each KL budget, by win rate."""
    found: dict[tuple[str, str], dict[float, Finding]] = {}
    for budget in comparison.budgets:
        for finding in budget.findings:
            found.setdefault((finding.claim.better, finding.claim.worse), {})[budget.kl] = finding
    rows = [
        [f"{better} − {worse}", *(_outcome(by_budget.get(budget.kl)) for budget in comparison.budgets)]
        for (better, worse), by_budget in found.items()
    ]
    return TextTable(
        "Findings of the paper within KL budgets: win rate (training reward), points [95 %]",
        ["", *_columns(comparison)],
        rows,
        "A method that has no version within a budget is not compared there. Tests by reward and by every judge are in "
        "compare.json.",
    )


def _outcome(finding: Finding | None) -> str:
    return "" if finding is None else f"{points(finding.difference)} {finding.outcome}"


def _table(comparison: Comparison, title: str, cell: Cell, note: str) -> TextTable:
    def shown(budget: Budget, label: str) -> str:
        if label in budget.methods:
            return cell(budget, budget.methods[label])
        return FAILED if label in budget.untested else NONE

    rows = [[label, *(shown(budget, label) for budget in comparison.budgets)] for label in comparison.methods]
    return TextTable(title, ["method", *_columns(comparison)], rows, note)


def _columns(comparison: Comparison) -> list[str]:
    return [f"KL ≤ {budget.kl:g}" for budget in comparison.budgets]


def _seeds(comparison: Comparison, figures: BudgetFigures) -> str:
    """Return how many seeds a figure is of, where it is not of all: a run may have no version within the budget."""
    count, all_seeds = len(figures.seeds), len(comparison.protocol.seeds)
    return "" if count == all_seeds else f", {count} of {all_seeds} seeds"
