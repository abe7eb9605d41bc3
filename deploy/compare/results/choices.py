"""What validation prompts choose among finished runs: learning rates, and versions within a KL budget.

A version is within a budget if its KL(q‖p) on validation prompts is at most the budget. Of these, one with the highest
merit is taken: over all rates of the grid on the first seed, which chooses the rate, and at that rate on every seed.
Version 0, the prior itself, is not a candidate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.methods import Method
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan, TrainingRun, best_rate
from brain_align.deploy.compare.results.run_results import (
    EvaluatedVersion,
    FinishedRun,
    is_finished,
    read_finished,
    read_tested,
)


@dataclass(frozen=True)
class Choice:
    """The version of a run that is compared at a KL budget."""

    finished: FinishedRun
    version: int

    def tested(self, directory: ComparisonDirectory) -> EvaluatedVersion | None:
        """Read its results on test prompts; None until it is evaluated on them."""
        return read_tested(directory, self.finished, self.version)


def tested_name(run: str) -> str:
    """Return what the evaluation of a run's chosen versions is called where it failed."""
    return f"{run}, test prompts"


def best_within(finished: FinishedRun, budget: float) -> int | None:
    """Return the version with the best merit within a KL budget, the earliest of equal ones; None if there is none."""
    within = [
        version
        for version, figures in sorted(finished.validation.items())
        if version > 0 and figures["kl_to_prior"] <= budget
    ]
    return max(within, key=finished.merit_of) if within else None


def rate_within(grid: Sequence[FinishedRun], budget: float) -> float | None:
    """Return the learning rate of the best version within a KL budget, the smaller of equal ones; None without one."""
    within = {one.run.learning_rate: (one, best_within(one, budget)) for one in grid}
    return best_rate({rate: one.merit_of(best) for rate, (one, best) in within.items() if best is not None})


def read_all(directory: ComparisonDirectory, runs: Sequence[TrainingRun]) -> list[FinishedRun]:
    """Read those of some runs that are finished."""
    return [result for run in runs if (result := read_finished(directory, run)) is not None]


def chosen_rates(directory: ComparisonDirectory, plan: ComparisonPlan, method: Method, n: int) -> list[float]:
    """Return the rates at which a method is trained on every seed, its best one first; none if its grid has failed.

    The grid's runs have ended.
    """
    grid = read_all(directory, plan.grid(method, n))
    best = best_rate({result.run.learning_rate: result.merit for result in grid})
    within = (rate_within(grid, budget) for budget in plan.budgets(n))
    return list(dict.fromkeys(rate for rate in (best, *within) if rate is not None))


def known_runs(directory: ComparisonDirectory, plan: ComparisonPlan, method: Method, n: int) -> list[TrainingRun]:
    """Return the runs of a method that are planned as far as rates are chosen: its grid, then those of other seeds."""
    grid = plan.grid(method, n)
    rates = chosen_rates(directory, plan, method, n) if all(is_finished(directory, run) for run in grid) else []
    further = [run for rate in rates for run in plan.chosen(method, n, rate)]
    return list(dict.fromkeys([*grid, *further]))


def choices(directory: ComparisonDirectory, plan: ComparisonPlan, method: Method) -> dict[float, list[Choice]]:
    """Return what a method is compared by at each KL budget: a version of every seed whose run has one, in order."""
    grid = read_all(directory, plan.grid(method, plan.n))
    found: dict[float, list[Choice]] = {}
    for budget in plan.request.kl_budgets:
        rate = rate_within(grid, budget)
        runs = [] if rate is None else read_all(directory, plan.chosen(method, plan.n, rate))
        within = ((one, best_within(one, budget)) for one in runs)
        found[budget] = [Choice(one, version) for one, version in within if version is not None]
    return found


def untested(directory: ComparisonDirectory, plan: ComparisonPlan, method: Method) -> dict[str, list[Choice]]:
    """Return the choices of all KL budgets that have not been evaluated on test prompts, by the name of their run."""
    lacking: dict[str, dict[int, Choice]] = {}
    for chosen in choices(directory, plan, method).values():
        for choice in chosen:
            if choice.tested(directory) is None:
                lacking.setdefault(choice.finished.run.name, {})[choice.version] = choice
    return {name: list(by_version.values()) for name, by_version in lacking.items()}


def why_unread(
    directory: ComparisonDirectory, plan: ComparisonPlan, method: Method, budget: float, failed: Mapping[str, str]
) -> str:
    """Return why a method has no version of the first seed within a KL budget that was evaluated on test prompts.

    `failed` has what failed in this start, by name.
    """

    def ended(name: str) -> str:
        return "failed" if name in failed else "did not finish"

    grid = plan.grid(method, plan.n)
    found = choices(directory, plan, method)[budget]
    first = next((choice for choice in found if choice.finished.run.seed == plan.request.seeds[0]), None)
    if first is not None:
        name = first.finished.run.name
        evaluation = f"its evaluation on test prompts {ended(tested_name(name))}"
        return f"version {first.version} of {name} is within {budget:g} nats, but {evaluation}"
    lacking = [run for run in grid if not is_finished(directory, run)]
    none = f"no version within {budget:g} nats"
    if not lacking:
        return none
    counted = f"{len(lacking)} of its {len(grid)} training runs {ended(lacking[0].name)}"
    return counted if len(lacking) == len(grid) else f"{none}; {counted}"


def unfinished(directory: ComparisonDirectory, plan: ComparisonPlan) -> bool:
    """Return whether any run of a plan is left to train, or any choice is left to evaluate."""
    for method in plan.request.methods:
        for n in plan.sizes(method):
            if not all(is_finished(directory, run) for run in known_runs(directory, plan, method, n)):
                return True
        if untested(directory, plan, method):
            return True
    return False
