"""Methods compared within KL budgets: what a method reaches for a distance from the prior."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan
from brain_align.deploy.compare.results.choices import choices
from brain_align.deploy.compare.results.findings import Finding, findings
from brain_align.deploy.compare.results.method_results import (
    PairedTest,
    VersionFigures,
    paired_test,
    version_figures,
)
from brain_align.deploy.compare.results.run_results import EvaluatedVersion


@dataclass(frozen=True)
class BudgetFigures(VersionFigures):
    """A method within a KL budget; its own KL on test prompts may differ from that on validation prompts."""

    versions: list[int]  # of each seed


@dataclass(frozen=True)
class Budget:
    """The methods at one KL budget."""

    kl: float  # nats, on validation prompts
    methods: dict[str, BudgetFigures]  # by label; a method of which no version is within the budget is missing
    untested: list[str]  # methods that have one, which could not be evaluated on test prompts
    tests: list[PairedTest]  # every pair of these methods, and each against the prior
    findings: list[Finding]  # what the tests say of the paper's claims

    def against_prior(self, label: str) -> PairedTest | None:
        """Return a method's test against the prior; None if it has none."""
        return next((test for test in self.tests if (test.ours, test.theirs) == (label, "prior")), None)


def read_matched(
    directory: ComparisonDirectory, plan: ComparisonPlan
) -> dict[float, dict[str, list[EvaluatedVersion]]]:
    """Read the versions that are compared within each KL budget, one per seed, by budget and method.

    A method without any is missing, and so are seeds without one. The list is empty where none could be evaluated on
    test prompts.
    """
    read: dict[float, dict[str, list[EvaluatedVersion]]] = {budget: {} for budget in plan.request.kl_budgets}
    for method in plan.request.methods:
        for budget, chosen in choices(directory, plan, method).items():
            if chosen:
                tested = (choice.tested(directory) for choice in chosen)
                read[budget][method.label] = [result for result in tested if result is not None]
    return read


def matched(
    read: Mapping[float, Mapping[str, Sequence[EvaluatedVersion]]], prior: Sequence[EvaluatedVersion]
) -> list[Budget]:
    """Return the figures of all budgets, and paired tests between all methods and the prior."""
    made: dict[object, PairedTest | None] = {}  # larger budgets often choose the same versions
    return [_budget(kl, methods, prior, made) for kl, methods in read.items()]


def _budget(
    kl: float,
    methods: Mapping[str, Sequence[EvaluatedVersion]],
    prior: Sequence[EvaluatedVersion],
    made: dict[object, PairedTest | None],
) -> Budget:
    tested = {label: results for label, results in methods.items() if results}
    compared = {"prior": prior, **tested}
    tests: list[PairedTest] = []
    for theirs, ours in combinations(compared, 2):
        pair = ours, theirs, *(_names(compared[label]) for label in (ours, theirs))
        if pair not in made:
            made[pair] = paired_test(ours, compared[ours], theirs, compared[theirs])
        if (test := made[pair]) is not None:
            tests += [test, test.turned()]
    figures = {
        label: BudgetFigures(**vars(version_figures(label, results)), versions=[one.version for one in results])
        for label, results in tested.items()
    }
    return Budget(kl, figures, [label for label in methods if label not in tested], tests, findings(tests))


def _names(results: Sequence[EvaluatedVersion]) -> tuple[tuple[str, int], ...]:
    return tuple((result.run.name, result.version) for result in results)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return those of some (KL, gain) points that no other beats: none has at most its KL and more gain.

    In increasing order of KL.

    Example:
        (1, 5), (2, 4), (2, 6), (3, 6): (1, 5) and (2, 6) are left.
    """
    front: list[tuple[float, float]] = []
    for kl, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((kl, gain))
    return front
