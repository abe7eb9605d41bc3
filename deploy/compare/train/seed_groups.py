"""The groups that all training runs of a seed start from, of every round, sampled from the prior; and a run's plan.

The groups and the prior's evaluation are sampled and scored once, as in any run. One more round, on which no method
trains, has groups of validation prompts: on these the methods' likelihoods are examined.
"""

from dataclasses import dataclass

import numpy as np

from brain_align.common.config.recipe import Recipe
from brain_align.common.durable import write_file
from brain_align.common.requests import SampleRequest
from brain_align.common.schemas import HUMAN, PRIOR
from brain_align.common.store.overlay import OverlaidStore, Store
from brain_align.common.store.rewards import stored_rewards
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.compare.examine.examiner import ExaminedGroups
from brain_align.deploy.compare.examine.likelihoods import Row, StoredValues
from brain_align.deploy.conductor.group_pipeline import GroupPipeline
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.preflight import Inputs
from brain_align.deploy.run.run_plan import RunPlan, training_scorers
from brain_align.deploy.schedule.evaluation import Evaluation
from brain_align.deploy.schedule.quarantine import Quarantine
from brain_align.deploy.schedule.request_plan import RequestPlan, request_plan
from brain_align.deploy.schedule.round_prompts import DrawnPrompts, StoredGroups, TrainingRequests
from brain_align.deploy.schedule.rounds import Rounds
from brain_align.deploy.services.services import Services
from brain_align.deploy.services.trial import notes_of

HELD_BACK_GROUPS = 64
"""The number of groups of validation prompts, and of the first round, that are examined."""


@dataclass(frozen=True)
class SeedGroups:
    """The groups of one seed."""

    run_id: str  # see `seed_run_id`
    recipe: Recipe  # the seed's, see `seed_recipe`, with `{world}` replaced
    directory: RunDirectory  # of stores, logs and version 0; a run directory without training
    inputs: Inputs

    def open(self, *, read_only: bool = True) -> SampleStore:
        """Open the store of the groups."""
        return SampleStore(self.directory.own_store, self.run_id, read_only=read_only)

    def open_evaluation(self, *, read_only: bool = True) -> SampleStore:
        """Open the store of the prior's evaluation."""
        return SampleStore(self.directory.evaluation, self.run_id, read_only=read_only)

    def request_plan(self) -> RequestPlan:
        """Return the plan that names these groups."""
        return request_plan(self.recipe, self.run_id, self.directory.policies)

    def evaluation(self, store: SampleStore) -> Evaluation:
        """Return the prior's evaluation."""
        return Evaluation(
            self.recipe, store, self.request_plan(), self.inputs.held_back, evaluation_scorers(self.recipe)
        )

    def training_requests(self) -> list[SampleRequest]:
        """Return the requests of all rounds from version 0, and those of the round on which no method trains."""
        recipe, plan = self.recipe, self.request_plan()
        round_prompts = DrawnPrompts(recipe.algorithm, self.inputs.train, recipe.seed)
        rounds = recipe.algorithm.rounds
        drawn = [(round_, round_prompts.prompts(round_)) for round_ in range(rounds)]
        held_back = (rounds, self.inputs.held_back["validation"][:HELD_BACK_GROUPS])
        return [
            request
            for round_, prompts in [*drawn, held_back]
            for request in plan.requests("train", round_, 0, recipe.sampling.n, prompts)
        ]

    def read_examined(self) -> ExaminedGroups:
        """Read the groups that the seed's versions are examined on."""
        store = self.open()
        held_back, first_round = (self._examined(store, round_) for round_ in (self.recipe.algorithm.rounds, 0))
        rows = store.groups([*held_back.group_ids, *first_round.group_ids])
        return ExaminedGroups(self.recipe, held_back, first_round, rows)

    def _examined(self, store: SampleStore, round_: int) -> StoredValues:
        """Return rewards and prior log-probabilities of a round's examined groups; quarantined ones are skipped."""
        scorers = [PRIOR, *self.recipe.reward_scorers()]
        ids = [
            name
            for request in self.training_requests()
            if request.round == round_
            for name in request.group_ids
            if all(store.has_score(name, scorer) for scorer in scorers)
        ][:HELD_BACK_GROUPS]
        rewards = stored_rewards(store, ids, self.recipe.reward)["values"].to_pylist()
        prior = store.scores(ids, PRIOR)["values"].to_pylist()
        return StoredValues(ids, [_floats(row) for row in rewards], [_floats(row) for row in prior])


def _floats(row: list[float | None]) -> Row:
    return np.array(row, dtype=np.float64)  # None -> NaN


def evaluation_scorers(recipe: Recipe) -> list[str]:
    """Return the scorers of held-back outputs: all."""
    return [PRIOR, *recipe.scorers]


async def sample_groups(groups: SeedGroups, services: Services, tracker: Tracker) -> Evaluation:
    """Sample and score the groups that are missing, from the published version 0; return the prior's evaluation.

    Raises:
        PipelineError, UserError: see `Conductor.run`.
    """
    recipe = groups.recipe
    store, evaluated = groups.open(read_only=False), groups.open_evaluation(read_only=False)
    evaluation = groups.evaluation(evaluated)
    schedule = Rounds(recipe.algorithm, DrawnPrompts(recipe.algorithm, groups.inputs.train, recipe.seed), recipe.seed)
    run_plan = RunPlan(
        store=store,
        schedule=schedule,
        training_scorers=training_scorers(recipe),
        started_scorers=list(services.scorers),
        requests=None,
        evaluation=evaluation,
        quarantine=Quarantine(groups.directory.quarantine),
    )
    requests = groups.training_requests()
    wanted = {name for request in requests for name in request.group_ids}
    tried = await services.start_pools(groups.inputs.trial(), recipe.timeouts.lease)
    tracker.say(*notes_of(tried))
    pipeline = GroupPipeline(recipe, run_plan, tracker, services)
    pipeline.scoring.tried(tried)
    async with pipeline.running():
        await pipeline.take_up(0)
        there = await pipeline.training.queue.call(lambda: set(store.index()["group_id"].to_pylist()))
        pipeline.enqueue(request for request in requests if not there.issuperset(request.group_ids))
        await pipeline.evaluate(0)
        await pipeline.pending.until(
            lambda: schedule.are_ready(wanted - run_plan.quarantine.groups - pipeline.training.valueless) or None,
            f"the groups of seed {recipe.seed}",
        )
        await pipeline.until_evaluated("validation", [0])
        await pipeline.until_evaluated("test", [0])
    return evaluation


async def publish_prior(recipe: Recipe, services: Services) -> None:
    """Publish version 0, a policy that equals the prior, with a learner of the seed's own."""
    try:
        step = await services.learner.start()
        await services.learner.publish(0, step)
    finally:
        services.learner.kill()


def make_run_plan(recipe: Recipe, run_id: str, directory: RunDirectory, groups: SeedGroups, below: Store) -> RunPlan:
    """Return the plan of one training run: train on its seed's groups, and be evaluated as any run is.

    A method with a fixed proposal trains on the seed's groups of every round. A method that updates its proposal
    trains on those of the first round, whose proposal is the prior for every method, and samples the later rounds
    itself. A method of human pairs finds these in `below` instead, the store that holds the groups, their first
    outputs, or the pairs. Outputs of version 0 are never sampled again: they are the prior's, the same for every run.
    """
    plan = request_plan(recipe, run_id, directory.policies, prior_run=groups.run_id)
    if groups.directory.quarantine.exists() and not directory.quarantine.exists():
        write_file(
            directory.quarantine, groups.directory.quarantine.read_text(encoding="utf-8")
        )  # no training run has these groups
    prompts = DrawnPrompts(recipe.algorithm, groups.inputs.train, recipe.seed)
    offline = recipe.has_fixed_proposal
    rounds_below = recipe.algorithm.rounds if offline else 1
    trained = StoredGroups(below.index()) if recipe.objective.reward == HUMAN else prompts
    return RunPlan(
        store=OverlaidStore(SampleStore(directory.own_store, run_id), below, rounds_below),
        schedule=Rounds(recipe.algorithm, trained, recipe.seed),
        training_scorers=training_scorers(recipe),
        started_scorers=list(dict.fromkeys([*evaluation_scorers(recipe), *recipe.logprob_scorers()])),
        requests=None if offline else TrainingRequests(recipe.algorithm, prompts, plan, recipe.sampling.n, fixed=False),
        evaluation=run_evaluation(recipe, run_id, directory, groups),
        quarantine=Quarantine(directory.quarantine),
    )


def run_evaluation(
    recipe: Recipe, run_id: str, directory: RunDirectory, groups: SeedGroups, *, read_only: bool = False
) -> Evaluation:
    """Return the evaluation of a training run, in which the outputs of version 0 are the prior's."""
    plan = request_plan(recipe, run_id, directory.policies, prior_run=groups.run_id)
    own = SampleStore(directory.evaluation, run_id, read_only=read_only)
    store = OverlaidStore(own, groups.open_evaluation(), 1)
    return Evaluation(groups.recipe, store, plan, groups.inputs.held_back, evaluation_scorers(recipe))
