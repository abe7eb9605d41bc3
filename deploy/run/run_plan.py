"""The work of a run, apart from the services that do it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.data.text_groups import trial_groups
from brain_align.common.requests import Prompt
from brain_align.common.schemas import HUMAN, PRIOR
from brain_align.common.store.overlay import Store
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.run.delivery import DeliveryChoice
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.schedule.evaluation import Evaluation, Split
from brain_align.deploy.schedule.quarantine import Quarantine
from brain_align.deploy.schedule.request_plan import request_plan
from brain_align.deploy.schedule.round_prompts import DrawnPrompts, TrainingRequests
from brain_align.deploy.schedule.rounds import Rounds, Schedule


@dataclass(frozen=True)
class RunPlan:
    """The stores of a run, and what is sampled, scored, trained and evaluated in them."""

    store: Store
    schedule: Schedule  # which groups train which step
    training_scorers: list[str]  # those that a group for training needs
    started_scorers: list[str]  # those that have values to compute
    requests: TrainingRequests | None  # for training; None where the groups are another run's
    evaluation: Evaluation | None  # of published versions; None where nothing is sampled
    quarantine: Quarantine  # prompts and groups that the run continues without
    trial: pa.RecordBatch | None = None  # GROUPS rows that the scorers are tried on at the start
    delivery: DeliveryChoice | None = None  # how versions get into samplers; None where nothing is sampled

    @property
    def store_trouble(self) -> str | None:
        """Return the error of a request that a store repeats; None while requests succeed."""
        evaluated = None if self.evaluation is None else self.evaluation.store.trouble
        return self.store.trouble or evaluated

    @property
    def damaged(self) -> list[str]:
        """A sentence for each damaged part that was found when the stores were opened."""
        evaluated = [] if self.evaluation is None else self.evaluation.store.damaged
        return [*self.store.damaged, *evaluated]


def training_scorers(recipe: Recipe) -> list[str]:
    """Return the scorers whose values a group must have before it is trained on."""
    if recipe.objective.reward == HUMAN:
        return [*recipe.logprob_scorers(), HUMAN]
    return [*recipe.logprob_scorers(), *(name for name, scorer in recipe.scorers.items() if scorer.use == "training")]


def prompts_trial(train: Sequence[Prompt], held_back: Mapping[Split, Sequence[Prompt]]) -> pa.RecordBatch:
    """Return the groups that scorers are tried on: a few prompts of each split."""
    return trial_groups([*train[:2], *(prompt for split in held_back.values() for prompt in split[:1])])


def sampling_work(
    recipe: Recipe, run_id: str, directory: RunDirectory, train: Sequence[Prompt], held_back: dict[Split, list[Prompt]]
) -> RunPlan:
    """Plan a run that samples its groups itself."""
    plan = request_plan(recipe, run_id, directory.policies)
    round_prompts = DrawnPrompts(recipe.algorithm, train, recipe.seed)
    scorers = [PRIOR, *recipe.scorers]
    return RunPlan(
        store=SampleStore(directory.store, run_id),
        schedule=Rounds(recipe.algorithm, round_prompts, recipe.seed),
        training_scorers=training_scorers(recipe),
        started_scorers=[*recipe.logprob_scorers(), *recipe.scorers],
        requests=TrainingRequests(
            recipe.algorithm, round_prompts, plan, recipe.sampling.n, fixed=recipe.has_fixed_proposal
        ),
        evaluation=Evaluation(recipe, SampleStore(directory.evaluation, run_id), plan, held_back, scorers),
        quarantine=Quarantine(directory.quarantine),
        trial=prompts_trial(train, held_back),
    )
