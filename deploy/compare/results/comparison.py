"""All figures of a comparison, as tables, plots and compare.json show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import recipe_digest
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.methods import Method
from brain_align.deploy.compare.plan.request import SWEPT
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan, TrainingRun, at_edge, best_rate
from brain_align.deploy.compare.results.choices import chosen_rates, read_all
from brain_align.deploy.compare.results.findings import Finding, findings, size_findings
from brain_align.deploy.compare.results.matched import Budget, matched, read_matched
from brain_align.deploy.compare.results.method_results import (
    PERCENT,
    MethodFigures,
    PairedTest,
    method_figures,
    paired_test,
    wins,
)
from brain_align.deploy.compare.results.run_results import FinishedRun, read_prior
from brain_align.deploy.compare.results.series import (
    GridPoint,
    RewardCurve,
    SizePoint,
    grid_point,
    reward_curve,
    size_point,
)


@dataclass(frozen=True)
class Protocol:
    """The settings that all methods share."""

    learning_rates: list[float]  # the grid
    seeds: list[int]  # the first chooses the rates
    n: int  # outputs per group
    kl_budgets: list[float]  # nats
    sizes: dict[str, list[int]]  # the group sizes that each method is to be trained with, by its label; n is the first
    # rounds, prompts_per_round, updates_per_round, batch_prompts: the budget.
    rounds: int
    prompts_per_round: int
    updates_per_round: int
    batch_prompts: int
    # validation_prompts, test_prompts: prompts for choices, and for the reported figures.
    validation_prompts: int
    test_prompts: int

    def planned(self) -> dict[tuple[str, int], str]:
        """Return the names in tables of each method with each of its group sizes, by label and n."""
        return {
            (label, n): label if n == self.n else f"{label}, n = {n}"
            for label, sizes in self.sizes.items()
            for n in sizes
        }


@dataclass(frozen=True)
class Comparison:
    """All figures: the contents of compare.json."""

    name: str  # of the recipe
    recipe_digest: str
    protocol: Protocol
    prior: MethodFigures | None  # the policy before training; None until a run is finished
    methods: dict[str, MethodFigures]  # by label, in the order of the request; only those with finished runs
    tests: list[PairedTest]  # every pair of methods, the prior among them
    findings: list[Finding]  # what the tests say of the paper's claims
    grid: list[GridPoint]  # all learning rates of all methods
    group_sizes: list[SizePoint]  # win rate against n, each n at its own learning rate
    size_grid: list[GridPoint]  # the learning rates from which these were chosen
    curves: list[RewardCurve]  # reward against the distance from the prior
    budgets: list[Budget]  # the methods within each KL budget, in increasing order
    failed: dict[str, str]  # why a run is missing, by its name
    warnings: list[str]  # about reward models that are no better than a coin, or than length alone

    def with_prior(self) -> list[MethodFigures]:
        """Return the figures of the prior, if known, and of all methods."""
        return [*([] if self.prior is None else [self.prior]), *self.methods.values()]

    def against_prior(self, label: str) -> PairedTest | None:
        """Return a method's test against the prior; None if it has none."""
        return next((test for test in self.tests if (test.ours, test.theirs) == (label, "prior")), None)

    def lacking(self) -> dict[str, list[int]]:
        """Return the seeds without a result, by method (and group size, if it is not the recipe's)."""
        there = {(point.label, point.n): point.seeds for point in self.group_sizes}
        there |= {(label, self.protocol.n): figures.seeds for label, figures in self.methods.items()}
        lacking = {
            name: [seed for seed in self.protocol.seeds if seed not in there.get(planned, ())]
            for planned, name in self.protocol.planned().items()
        }
        return {name: seeds for name, seeds in lacking.items() if seeds}


@dataclass(frozen=True)
class _Finished:
    """The finished runs of one method with n outputs per group."""

    grid: list[FinishedRun]
    chosen: list[FinishedRun]
    within: list[FinishedRun]  # at further learning rates, which KL budgets chose


@dataclass(frozen=True)
class _Method:
    """The finished runs of one method: with the recipe's n, and with smaller groups, by n."""

    full: _Finished
    smaller: dict[int, _Finished]

    def by_size(self) -> dict[int, list[FinishedRun]]:
        """Return the chosen runs by n, in increasing order; empty for a method without smaller groups."""
        if not self.smaller:
            return {}
        by_size = {runs.chosen[0].run.n: runs.chosen for runs in (*self.smaller.values(), self.full)}
        return dict(sorted(by_size.items()))


def collect(
    directory: ComparisonDirectory,
    recipe: Recipe,
    plan: ComparisonPlan,
    failed: Mapping[str, str],
    warnings: Sequence[str] = (),
) -> Comparison:
    """Read the finished runs of a plan and compute all figures.

    `failed` tells why a run could not be trained; `warnings` are about the recipe's reward models.
    """
    read = {method.label: _read_method(directory, plan, method) for method in plan.request.methods}
    finished = {label: runs for label, runs in read.items() if runs.full.chosen}
    by_seed = {result.run.seed: result for runs in finished.values() for result in runs.full.chosen}
    prior = [read_prior(directory, by_seed[seed]) for seed in sorted(by_seed)]
    rates = plan.request.learning_rates
    tested = {**({"prior": prior} if prior else {}), **{label: runs.full.chosen for label, runs in finished.items()}}
    pairs = combinations(tested, 2)
    made = (paired_test(ours, tested[ours], theirs, tested[theirs]) for ours, theirs in pairs)
    once = [test for test in made if test is not None]
    tests = [*once, *(test.turned() for test in once)]
    return Comparison(
        name=recipe.name,
        recipe_digest=recipe_digest(recipe),
        protocol=_protocol(recipe, plan),
        prior=method_figures("prior", prior, rate_at_edge=False) if prior else None,
        methods={
            label: method_figures(label, chosen, rate_at_edge=at_edge(chosen[0].run.learning_rate, rates))
            for label, chosen in ((label, runs.full.chosen) for label, runs in finished.items())
        },
        tests=tests,
        findings=[*findings(tests), *_size_findings(finished)],
        grid=[grid_point(result) for runs in finished.values() for result in runs.full.grid],
        group_sizes=[size_point(chosen) for runs in finished.values() for chosen in runs.by_size().values()],
        size_grid=[
            grid_point(result)
            for runs in finished.values()
            for smaller in runs.smaller.values()
            for result in smaller.grid
        ],
        curves=[reward_curve(label, _all(runs.full)) for label, runs in finished.items()],
        budgets=matched(read_matched(directory, plan), prior),
        failed=dict(failed),
        warnings=list(warnings),
    )


def _read_method(directory: ComparisonDirectory, plan: ComparisonPlan, method: Method) -> _Method:
    read = {n: _read_runs(directory, plan, method, n) for n in plan.sizes(method)}
    return _Method(read.pop(plan.n), {n: runs for n, runs in read.items() if runs.chosen})


def _read_runs(directory: ComparisonDirectory, plan: ComparisonPlan, method: Method, n: int) -> _Finished:
    def finished(runs: list[TrainingRun]) -> list[FinishedRun]:
        return read_all(directory, runs)

    grid = finished(plan.grid(method, n))
    rate = best_rate({result.run.learning_rate: result.merit for result in grid})
    further = chosen_rates(directory, plan, method, n)[1:]
    within = [run for one in further for run in plan.chosen(method, n, one)]
    return _Finished(grid, [] if rate is None else finished(plan.chosen(method, n, rate)), finished(within))


def _size_findings(finished: Mapping[str, _Method]) -> list[Finding]:
    """Return what the methods of figure 2 show of it, on the seeds that all their group sizes have."""
    found = []
    for label in SWEPT:
        by_size = finished[label].by_size() if label in finished else {}
        if not by_size:
            continue
        shared = set.intersection(*({result.run.seed for result in results} for results in by_size.values()))
        of_shared = {n: [one for one in results if one.run.seed in shared] for n, results in by_size.items()}
        won = {n: wins(results) for n, results in of_shared.items() if results}
        found += size_findings(label, {n: PERCENT * rows for n, rows in won.items() if rows is not None})
    return found


def _all(runs: _Finished) -> list[FinishedRun]:
    return list({result.run.name: result for result in [*runs.grid, *runs.chosen, *runs.within]}.values())


def _protocol(recipe: Recipe, plan: ComparisonPlan) -> Protocol:
    algorithm, evaluation = recipe.algorithm, recipe.evaluation
    return Protocol(
        learning_rates=list(plan.request.learning_rates),
        seeds=list(plan.request.seeds),
        n=plan.n,
        kl_budgets=list(plan.request.kl_budgets),
        sizes={method.label: plan.sizes(method) for method in plan.request.methods},
        rounds=algorithm.rounds,
        prompts_per_round=algorithm.prompts_per_round,
        updates_per_round=algorithm.updates_per_round,
        batch_prompts=algorithm.batch_prompts,
        validation_prompts=evaluation.validation_prompts,
        test_prompts=evaluation.test_prompts,
    )
