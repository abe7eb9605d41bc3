"""A comparison as a whole: everything that tables, plots and compare.json show."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from common.config.recipe import Recipe
from common.config.run_identity import recipe_digest
from deploy.compare.cell_results import CellResult, read_cell, read_prior
from deploy.compare.findings import Finding, findings, size_findings
from deploy.compare.layout import ComparisonDirectory
from deploy.compare.methods import Method
from deploy.compare.plan import Cell, Plan, at_edge, best_rate
from deploy.compare.results import PERCENT, MethodFigures, PairedTest, method_figures, paired_test, wins
from deploy.compare.series import (
    GridPoint,
    RewardCurve,
    SizePoint,
    grid_point,
    reward_curve,
    size_point,
)


@dataclass(frozen=True)
class Protocol:
    """What is the same for every method, so that the comparison is one.

    Attributes:
        learning_rates: the grid.
        seeds: the first chooses the rates.
        n: outputs a group.
        rounds, prompts_per_round, updates_per_round, batch_prompts: the budget.
        validation_prompts, test_prompts: that choose, and that are reported on.
    """

    learning_rates: list[float]
    seeds: list[int]
    n: int
    rounds: int
    prompts_per_round: int
    updates_per_round: int
    batch_prompts: int
    validation_prompts: int
    test_prompts: int


@dataclass(frozen=True)
class Comparison:
    """All figures.

    Attributes:
        name: of the recipe.
        recipe_digest: of the recipe that is compared on.
        protocol: what is the same for every method.
        prior: the policy before training; None until a cell is finished.
        methods: by label, in the order in which they were asked for; those that have finished.
        tests: every pair of methods.
        findings: what the tests say of the paper's claims.
        grid: all learning rates of all methods.
        group_sizes: win rate against n.
        curves: reward against the distance from the prior.
        failed: why a cell is missing, by its name.
    """

    name: str
    recipe_digest: str
    protocol: Protocol
    prior: MethodFigures | None
    methods: dict[str, MethodFigures]
    tests: list[PairedTest]
    findings: list[Finding]
    grid: list[GridPoint]
    group_sizes: list[SizePoint]
    curves: list[RewardCurve]
    failed: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """What compare.json holds."""
        return asdict(self)


@dataclass(frozen=True)
class _Finished:
    """The finished cells of one method."""

    grid: list[CellResult]
    chosen: list[CellResult]
    sweep: dict[int, list[CellResult]]


def collect(directory: ComparisonDirectory, recipe: Recipe, plan: Plan, failed: Mapping[str, str]) -> Comparison:
    """Read the finished cells of a plan and compute everything from them.

    Args:
        directory: of the comparison.
        recipe: the base of all cells.
        plan: the cells.
        failed: why some could not be trained, by name.
    """
    read = {method.label: _read_method(directory, plan, method) for method in plan.request.methods}
    finished = {label: cells for label, cells in read.items() if cells.chosen}
    once = [
        paired_test(ours, finished[ours].chosen, theirs, finished[theirs].chosen)
        for ours, theirs in combinations(finished, 2)
    ]
    tests = [*once, *(test.turned() for test in once)]
    return Comparison(
        name=recipe.name,
        recipe_digest=recipe_digest(recipe),
        protocol=_protocol(recipe, plan),
        prior=_prior(directory, finished),
        methods={label: _figures(label, cells, plan) for label, cells in finished.items()},
        tests=tests,
        findings=[*findings(tests), *_size_findings(finished, plan)],
        grid=[grid_point(result) for cells in finished.values() for result in cells.grid],
        group_sizes=[point for label, cells in finished.items() for point in _sizes(label, cells, plan)],
        curves=[reward_curve(label, _of_full_size(cells)) for label, cells in finished.items()],
        failed=dict(failed),
    )


def _read_method(directory: ComparisonDirectory, plan: Plan, method: Method) -> _Finished:
    def finished(cells: list[Cell]) -> list[CellResult]:
        return [result for cell in cells if (result := read_cell(directory, cell)) is not None]

    grid = finished(plan.grid(method))
    rate = best_rate({result.cell.learning_rate: result.merit for result in grid})
    if rate is None:
        return _Finished([], [], {})
    sweep: dict[int, list[CellResult]] = {}
    for result in finished(plan.sweep(method, rate)):
        sweep.setdefault(result.cell.n, []).append(result)
    return _Finished(grid, finished(plan.chosen(method, rate)), sweep)


def _figures(label: str, cells: _Finished, plan: Plan) -> MethodFigures:
    rate = cells.chosen[0].cell.learning_rate
    return method_figures(label, cells.chosen, rate_at_edge=at_edge(rate, plan.request.learning_rates))


def _prior(directory: ComparisonDirectory, finished: Mapping[str, _Finished]) -> MethodFigures | None:
    by_seed = {result.cell.seed: result for cells in finished.values() for result in cells.chosen}
    priors = [read_prior(directory, by_seed[seed]) for seed in sorted(by_seed)]
    return method_figures("prior", priors, rate_at_edge=False) if priors else None


def _sizes(label: str, cells: _Finished, plan: Plan) -> list[SizePoint]:
    if not cells.sweep:
        return []
    by_size = {**cells.sweep, plan.n: cells.chosen}
    return [size_point(label, n, by_size[n]) for n in sorted(by_size)]


def _size_findings(finished: Mapping[str, _Finished], plan: Plan) -> list[Finding]:
    cells = finished.get("brain")
    if cells is None or not cells.sweep:
        return []
    by_size = {**cells.sweep, plan.n: cells.chosen}
    shared = set.intersection(*({result.cell.seed for result in results} for results in by_size.values()))
    of_shared = {n: [one for one in results if one.cell.seed in shared] for n, results in by_size.items()}
    won = {n: wins(results) for n, results in of_shared.items() if results}
    return size_findings("brain", {n: PERCENT * rows for n, rows in won.items() if rows is not None})


def _of_full_size(cells: _Finished) -> list[CellResult]:
    return list({result.cell.name: result for result in [*cells.grid, *cells.chosen]}.values())


def _protocol(recipe: Recipe, plan: Plan) -> Protocol:
    algorithm, evaluation = recipe.algorithm, recipe.evaluation
    return Protocol(
        learning_rates=list(plan.request.learning_rates),
        seeds=list(plan.request.seeds),
        n=plan.n,
        rounds=algorithm.rounds,
        prompts_per_round=algorithm.prompts_per_round,
        updates_per_round=algorithm.updates_per_round,
        batch_prompts=algorithm.batch_prompts,
        validation_prompts=evaluation.validation_prompts,
        test_prompts=evaluation.test_prompts,
    )
