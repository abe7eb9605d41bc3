"""Which runs there are: one training run for each method, learning rate, seed and group size.

Every method is trained at every learning rate of the grid on the first seed. The rate whose best version wins most
often on validation prompts is the method's own (of equal ones that with the higher mean reward, then the smaller), and
the other seeds are trained at that one. The same is done with smaller groups, for fewer outputs may want another rate.
No method is treated in another way, and test prompts have no say.
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
    """One training run.

    Attributes:
        method: what is trained.
        learning_rate: of the optimiser.
        seed: of prompts, samples and adapter.
        n: outputs a group.
    """

    method: Method
    learning_rate: float
    seed: int
    n: int

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.method.slug}-lr{self.learning_rate:g}-seed{self.seed}-n{self.n}"


@dataclass(frozen=True)
class ComparisonPlan:
    """The runs of a request.

    Attributes:
        request: what was asked for.
        n: outputs a group in the recipe.
    """

    request: Request
    n: int

    def sizes(self, method: Method) -> list[int]:
        """Outputs a group that the method is trained with, the recipe's first."""
        return [self.n, *(self.request.group_sizes if method.label in self.request.swept else ())]

    def grid(self, method: Method, n: int) -> list[TrainingRun]:
        """The runs that the method's learning rate is chosen among, with n outputs a group."""
        first = self.request.seeds[0]
        return [TrainingRun(method, rate, first, n) for rate in self.request.learning_rates]

    def chosen(self, method: Method, n: int, rate: float) -> list[TrainingRun]:
        """The runs that the method is reported by: all seeds, at its learning rate."""
        return [TrainingRun(method, rate, seed, n) for seed in self.request.seeds]

    def count(self) -> int:
        """How many runs there are in all, whichever rates are chosen: one of each grid is among the chosen."""
        each = len(self.request.learning_rates) + len(self.request.seeds) - 1
        return each * sum(len(self.sizes(method)) for method in self.request.methods)


def best_rate(merits: Mapping[float, Merit]) -> float | None:
    """The learning rate with the best merit, the smaller of equal ones; None where no run of the grid has one."""
    return max(sorted(merits), key=lambda rate: merits[rate]) if merits else None


def at_edge(rate: float, grid: Sequence[float]) -> bool:
    """Whether a better rate may lie outside of the grid."""
    return len(grid) > 1 and rate in (min(grid), max(grid))


def run_recipe(base: Recipe, run: TrainingRun, directory: ComparisonDirectory, pairs: str | None = None) -> Recipe:
    """The recipe of a run: the base's but for objective, learning rate, seed and n.

    Args:
        base: the recipe that is compared on.
        run: which.
        directory: of the comparison.
        pairs: a store of human pairs, see `method_recipe`.

    Raises:
        UserError: base and method do not go together.
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
    """The recipe that the groups of a seed are sampled with, for all methods."""
    run = base.run.model_copy(update={"dir": str(directory.seed(seed).root)})
    return base.model_copy(update={"seed": seed, "run": run})


def seed_run_id(recipe: Recipe) -> str:
    """The run that a seed's groups are those of, for all runs of the seed: what is learned from them has no say."""
    settings = identity_settings(recipe.model_dump(mode="json"))
    decisive = {name: value for name, value in settings.items() if not name.startswith(("objective.", "learner."))}
    return digest("comparison", decisive)
