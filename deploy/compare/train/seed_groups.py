"""What all cells of a seed begin with: groups of every round from the prior, and the prior's evaluation.

They are sampled and scored once, by the same requests, samplers and scorers as in a run. One more round, which nobody
trains on, has groups of validation prompts: on these the methods' likelihoods are examined.
"""

import asyncio
from dataclasses import dataclass

import numpy as np

from brain_align.common.config.recipe import Recipe
from brain_align.common.requests import SampleRequest
from brain_align.common.schemas import PRIOR
from brain_align.common.store.rewards import stored_rewards
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.compare.examine.likelihoods import Row, StoredValues
from brain_align.deploy.conductor.group_pipeline import GroupPipeline
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.preflight import Inputs
from brain_align.deploy.run.run_plan import RunPlan, training_scorers
from brain_align.deploy.schedule.evaluation import Evaluation
from brain_align.deploy.schedule.quarantine import Quarantine
from brain_align.deploy.schedule.request_plan import RequestPlan, request_plan
from brain_align.deploy.schedule.round_prompts import DrawnPrompts
from brain_align.deploy.schedule.rounds import Rounds
from brain_align.deploy.services.services import Services

HELD_BACK_GROUPS = 64
"""Groups of validation prompts, and of the first round, that are examined."""


@dataclass(frozen=True)
class SeedGroups:
    """The groups of one seed.

    Attributes:
        run_id: see `seed_run_id`.
        recipe: the seed's, see `seed_recipe`, with `{world}` replaced.
        directory: of stores, versions and logs; a run directory that ends with version 0.
        inputs: the prompts.
    """

    run_id: str
    recipe: Recipe
    directory: RunDirectory
    inputs: Inputs

    def open(self, *, read_only: bool = True) -> SampleStore:
        """The store of the groups."""
        return SampleStore(self.directory.own_store, self.run_id, read_only=read_only)

    def open_evaluation(self, *, read_only: bool = True) -> SampleStore:
        """The store of the prior's evaluation."""
        return SampleStore(self.directory.evaluation, self.run_id, read_only=read_only)

    def plan(self) -> RequestPlan:
        """Of these groups."""
        return request_plan(self.recipe, self.run_id, self.directory.policies)

    def evaluation(self, store: SampleStore) -> Evaluation:
        """Of the prior."""
        return Evaluation(self.recipe, store, self.plan(), self.inputs.held_back, evaluation_scorers(self.recipe))

    def training_requests(self) -> list[SampleRequest]:
        """All rounds' requests, from version 0, and those of the round that nobody trains on."""
        recipe, plan = self.recipe, self.plan()
        round_prompts = DrawnPrompts(recipe.algorithm, self.inputs.train, recipe.seed)
        rounds = recipe.algorithm.rounds
        drawn = [(round_, round_prompts.prompts(round_)) for round_ in range(rounds)]
        held_back = (rounds, self.inputs.held_back["validation"][:HELD_BACK_GROUPS])
        return [
            request
            for round_, prompts in [*drawn, held_back]
            for request in plan.requests("train", round_, 0, recipe.sampling.n, prompts)
        ]

    def examined(self, store: SampleStore, round_: int) -> StoredValues:
        """Rewards and prior log-probabilities of a round's groups that are examined; what is left out is not.

        Args:
            store: of the groups.
            round_: `algorithm.rounds` is the one of held-back prompts.
        """
        requests = [request for request in self.training_requests() if request.round == round_]
        scorers = [PRIOR, *self.recipe.reward_scorers()]
        ids = [
            name
            for request in requests
            for name in request.group_ids
            if all(store.has_score(name, scorer) for scorer in scorers)
        ][:HELD_BACK_GROUPS]
        rewards = stored_rewards(store, ids, self.recipe.reward)["values"].to_pylist()
        prior = store.scores(ids, PRIOR)["values"].to_pylist()
        return StoredValues(ids, [_floats(row) for row in rewards], [_floats(row) for row in prior])


def _floats(row: list[float | None]) -> Row:
    return np.array(row, dtype=np.float64)  # None -> NaN


def evaluation_scorers(recipe: Recipe) -> list[str]:
    """The scorers of held-back outputs: all."""
    return [PRIOR, *recipe.scorers]


async def sample_groups(groups: SeedGroups, services: Services, tracker: Tracker) -> Evaluation:
    """Sample and score what is missing; version 0 is published.

    Args:
        groups: to complete.
        services: samplers and scorers, which may be shared.
        tracker: of the seed's directory.

    Returns:
        The prior's evaluation, complete.

    Raises:
        PipelineError, UserError: see `Conductor.run`.
    """
    recipe = groups.recipe
    store, evaluated = groups.open(read_only=False), groups.open_evaluation(read_only=False)
    evaluation = groups.evaluation(evaluated)
    schedule = Rounds(recipe.algorithm, DrawnPrompts(recipe.algorithm, groups.inputs.train, recipe.seed), recipe.seed)
    work = RunPlan(
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
    await asyncio.gather(*(pool.start() for pool in [services.samplers, *services.scorers.values()]))
    pipeline = GroupPipeline(recipe, work, tracker, services)
    async with pipeline.running():
        await pipeline.take_up(0)
        there = await pipeline.training.queue.call(lambda: set(store.index()["group_id"].to_pylist()))
        pipeline.enqueue(request for request in requests if not there.issuperset(request.group_ids))
        await pipeline.evaluate(0)
        await pipeline.until(
            lambda: schedule.are_ready(wanted - work.quarantine.groups) or None, f"the groups of seed {recipe.seed}"
        )
        await pipeline.until_evaluated("validation", [0])
        await pipeline.until_evaluated("test", [0])
    return evaluation


async def publish_prior(recipe: Recipe, services: Services) -> None:
    """Have a learner of the seed's own publish version 0: a policy that equals the prior."""
    try:
        step = await services.learner.start()
        await services.learner.publish(0, step)
    finally:
        services.learner.kill()
