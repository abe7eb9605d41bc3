"""What a run has to do, apart from who does it."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.config.recipe import Recipe
from common.leases import Prompt
from common.schemas import HUMAN, PRIOR
from common.store import SampleStore
from deploy.draws import DrawnPrompts, TrainingLeases
from deploy.evaluation import Evaluation, Split
from deploy.lease_plan import lease_plan
from deploy.quarantine import Quarantine
from deploy.rounds import Rounds, Schedule
from deploy.run_directory import RunDirectory
from deploy.run_store import RunStore


@dataclass(frozen=True)
class Work:
    """The stores of a run, and what is made of them.

    Attributes:
        store: what is sampled, scored and trained.
        schedule: which groups train which step.
        training_scorers: those that a group for training needs.
        started_scorers: those that have anything to do.
        leases: what is sampled for training; None where the store's groups are another run's.
        evaluation: of published versions; None where nothing can be sampled for it.
        quarantine: what all of it goes on without.
    """

    store: RunStore
    schedule: Schedule
    training_scorers: list[str]
    started_scorers: list[str]
    leases: TrainingLeases | None
    evaluation: Evaluation | None
    quarantine: Quarantine

    @property
    def damaged(self) -> list[str]:
        """What was found damaged when the stores were opened."""
        evaluated = [] if self.evaluation is None else self.evaluation.store.damaged
        return [*self.store.damaged, *evaluated]


def training_scorers(recipe: Recipe) -> list[str]:
    """The scorers whose values a group must have before it is trained on."""
    if recipe.objective.reward == HUMAN:
        return [*recipe.logprob_scorers(), HUMAN]
    return [*recipe.logprob_scorers(), *(name for name, scorer in recipe.scorers.items() if scorer.use == "training")]


def sampling_work(
    recipe: Recipe, run_id: str, directory: RunDirectory, train: Sequence[Prompt], held_back: dict[Split, list[Prompt]]
) -> Work:
    """The work of a run that samples its groups itself."""
    plan = lease_plan(recipe, run_id, directory.policies)
    draws = DrawnPrompts(recipe.algorithm, train, recipe.seed)
    scorers = [PRIOR, *recipe.scorers]
    return Work(
        store=SampleStore(directory.store, run_id),
        schedule=Rounds(recipe.algorithm, draws, recipe.seed),
        training_scorers=training_scorers(recipe),
        started_scorers=[*recipe.logprob_scorers(), *recipe.scorers],
        leases=TrainingLeases(recipe.algorithm, draws, plan, recipe.sampling.n, fixed=recipe.has_fixed_proposal),
        evaluation=Evaluation(recipe, SampleStore(directory.evaluation, run_id), plan, held_back, scorers),
        quarantine=Quarantine(directory.quarantine),
    )
