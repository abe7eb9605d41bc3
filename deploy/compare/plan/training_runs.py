"""The training runs of a comparison: one per method, learning rate, seed and group size.

Every method is trained at every learning rate of the grid on the first seed. The other seeds are trained at the rate
whose best version has the highest win rate on validation prompts (of equal ones, the rate with the higher mean reward,
then the smaller rate), and at the rates that are best within a KL budget, in the same sense. Smaller groups choose
their rate likewise, since fewer outputs may need another one. All methods are treated alike, and test prompts are not
used for any choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import identity_settings
from brain_align.common.identity import digest
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.methods import Method, method_recipe
from brain_align.deploy.compare.plan.request import Request
from brain_align.deploy.schedule.evaluation import Merit


@dataclass(frozen=True)
class TrainingRun:
    """One training run: `seed` is that of prompts, samples and adapter, n the number of outputs per group."""

    method: Method
    learning_rate: float
    seed: int
    n: int

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"{self.method.slug}-lr{self.learning_rate:g}-seed{self.seed}-n{self.n}"


@dataclass(frozen=True)
class ComparisonPlan:
    """The training runs that a request asks for, where the recipe has n outputs per group."""

    request: Request
    n: int

    def sizes(self, method: Method) -> list[int]:
        """Return the group sizes that a method is trained with, the recipe's first."""
        return [self.n, *(self.request.group_sizes if method.label in self.request.swept else ())]

    def grid(self, method: Method, n: int) -> list[TrainingRun]:
        """Return the runs that a method's learning rate is chosen from, with n outputs per group."""
        first = self.request.seeds[0]
        return [TrainingRun(method, rate, first, n) for rate in self.request.learning_rates]

    def chosen(self, method: Method, n: int, rate: float) -> list[TrainingRun]:
        """Return the runs that a method is reported by: all seeds, at its learning rate."""
        return [TrainingRun(method, rate, seed, n) for seed in self.request.seeds]

    def fewest(self) -> int:
        """Return the number of runs of one grid and the chosen rate, which is one of it; further rates add to it."""
        return len(self.request.learning_rates) + len(self.request.seeds) - 1

    def budgets(self, n: int) -> tuple[float, ...]:
        """Return the KL budgets at which runs with n outputs per group are compared: the recipe's n alone has any."""
        return self.request.kl_budgets if n == self.n else ()


def best_rate(merits: Mapping[float, Merit]) -> float | None:
    """Return the learning rate with the best merit, the smaller of equal ones; None if no rate has a merit."""
    return max(sorted(merits), key=lambda rate: merits[rate]) if merits else None


def at_edge(rate: float, grid: Sequence[float]) -> bool:
    """Return whether a rate is at the edge of its grid, so that a better one may lie outside."""
    return len(grid) > 1 and rate in (min(grid), max(grid))


def run_recipe(base: Recipe, run: TrainingRun, directory: ComparisonDirectory, pairs: str | None = None) -> Recipe:
    """Return the recipe of a training run: the base's, with its objective, learning rate, seed and n.

    For `pairs` and errors see `method_recipe`.
    """
    return method_recipe(
        base,
        run.method,
        pairs=pairs,
        seed=run.seed,
        learner={"learning_rate": run.learning_rate},
        sampling={"n": run.n},
        run={"dir": str(directory.run(run.name).root)},
    )


def seed_recipe(base: Recipe, seed: int, directory: ComparisonDirectory) -> Recipe:
    """Return the recipe with which the groups of a seed are sampled, for all methods."""
    run = base.run.model_copy(update={"dir": str(directory.seed(seed).root)})
    return base.model_copy(update={"seed": seed, "run": run})


def seed_run_id(recipe: Recipe) -> str:
    """Return the run id of a seed's groups, which does not depend on objective or learner: all methods share them."""
    settings = identity_settings(recipe.model_dump(mode="json"))
    decisive = {name: value for name, value in settings.items() if not name.startswith(("objective.", "learner."))}
    return digest("comparison", decisive)
