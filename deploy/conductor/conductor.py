"""The conductor: Algorithm 1 over separate sampling, scoring and training services.

It holds nothing that the store, the published versions and the learner's checkpoint do not hold: killed at any moment
and started again, it goes on where they stand.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError, first_failure
from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.common.store.training_batch import of_another_run, training_batch
from brain_align.deploy.conductor.gc_frozen import gc_frozen
from brain_align.deploy.conductor.gold import gold_encoder
from brain_align.deploy.conductor.group_pipeline import GroupPipeline
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.schedule.evaluation import Split
from brain_align.deploy.services.services import Services
from brain_align.learner.step_report import StepReport

T = TypeVar("T")

_PRIOR_TOLERANCE = 1.0
"""Nats an output by which two evaluations of one model may differ: 100 tokens in bfloat16 by other kernels."""


class Conductor:
    """Keeps samplers, scorers and learner at work until all rounds are done and evaluated."""

    def __init__(self, recipe: Recipe, work: RunPlan, tracker: Tracker, services: Services) -> None:
        self._recipe = recipe
        self._store = work.store
        self._schedule = work.schedule
        self._requests = work.requests
        self._evaluation = work.evaluation
        self._quarantine = work.quarantine
        self._tracker = tracker
        self._services = services
        self._learner = services.learner
        self.production = GroupPipeline(recipe, work, tracker, services)
        self._encode_gold = gold_encoder(recipe)
        self._admitted = 0  # rounds whose requests have been given out
        self._sampled_before: dict[int, set[str]] = {}  # ids of prompts, by round, that this start has found

    async def run(self) -> None:
        """Run, or resume, to the end.

        Raises:
            PipelineError: a service failed for good (named, with its log).
            UserError: something that the user must put right came up in a service.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                step = await self._start()
                with gc_frozen():
                    self.production.start(tasks)
                    await self._resume_from(step)
                    await self._train(step)
                    await self._evaluate_result()
                self.production.stop()
        except ExceptionGroup as failures:
            raise first_failure(failures) from failures
        finally:
            await self.production.close()

    # -- Algorithm 1 -------------------------------------------------------------------------------------------------

    async def _train(self, step: int) -> None:
        """Lines 4-22 of Algorithm 1: k optimiser steps on stored groups, then the policy becomes the proposal."""
        timeout = self._recipe.timeouts.step
        recorded = await self._stored(self._store.recorded_after, step)  # before a crash; the checkpoint lacks them
        while step < self._schedule.last_step:
            round_ = step // self._recipe.algorithm.updates_per_round
            step += 1
            published = round_ + 1 if self._ends_round(step) else None
            group_ids = await self._next_groups(step, recorded.pop(step, None))
            batch = await self._stored(self._batch, group_ids)
            report: StepReport = await self._learner.call("train_step", step, batch, timeout=timeout)
            self._tracker.say(*report.notes)
            self._check_prior(step, report.metrics)
            await self._record_step(step, round_, batch, published, report.metrics)
            self._schedule.take(group_ids)
            if published is not None or step % self._recipe.learner.checkpoint_steps == 0:
                await self._learner.call("save", step, await self._kept_steps(round_), timeout=timeout)
            if published is not None:
                await self._publish(published, step)

    async def _kept_steps(self, version: int) -> list[int]:
        """Whose checkpoints must not be deleted: those of the versions that may turn out the best."""
        evaluation = self._evaluation
        candidates = [] if evaluation is None else await self._evaluating(evaluation.candidates, version)
        return [candidate * self._recipe.algorithm.updates_per_round for candidate in candidates]

    def _ends_round(self, step: int) -> bool:
        return step % self._recipe.algorithm.updates_per_round == 0 or step == self._schedule.last_step

    async def _next_groups(self, step: int, recorded: list[str] | None) -> list[str]:
        """The groups of a step: those recorded, if it was done before a crash; else the next that are ready."""
        if recorded is None:
            return await self.production.until_ready(self._schedule.next_batch, f"groups for step {step}")
        return await self.production.until_ready(
            lambda: recorded if self._schedule.are_ready(recorded) else None, f"the recorded groups of step {step}"
        )

    def _batch(self, group_ids: list[str]) -> pa.RecordBatch:
        proposal = PROPOSAL if PROPOSAL in self._recipe.logprob_scorers() else None
        reward = self._recipe.reward
        batch = training_batch(
            self._store, group_ids, reward=reward, prior=PRIOR, proposal=proposal, gold=self._encode_gold
        )
        return of_another_run(batch) if self._requests is None else batch

    def _check_prior(self, step: int, metrics: dict[str, float]) -> None:
        """Before the first update the policy is the prior, so that a store's log p must be the policy's own."""
        apart = abs(metrics.get("kl_policy_prior", 0.0))
        if step == 1 and self._requests is None and apart > _PRIOR_TOLERANCE:
            raise UserError(
                f"The prior log-probabilities in the store that is trained from are not those of policy.model="
                f"{self._recipe.policy.model}: before the first update they should agree, and are {apart:.1f} nats an "
                f"output apart; set policy.model to the model that the store was scored with. Nothing was recorded."
            )

    async def _record_step(
        self, step: int, round_: int, batch: pa.RecordBatch, published: int | None, metrics: dict[str, float]
    ) -> None:
        row = {
            "step": step,
            "round": round_,
            "group_ids": batch["group_id"].to_pylist(),
            "published_version": published,
            "metrics": metrics,
            "finished_at": time.time(),
        }
        if await self._stored(self._store.append_step, row):
            staleness = round_ - pc.min(batch["proposal_version"]).as_py()
            self._tracker.stepped(step, round_, batch.num_rows, metrics, staleness)

    async def _publish(self, version: int, step: int) -> None:
        """Line 21 of Algorithm 1: q' <- q_theta; then admit what may be sampled from it, and evaluate it."""
        await self._learner.call("publish", version, step, timeout=self._recipe.timeouts.step)
        if step < self._schedule.last_step:
            self._schedule.begin(version, [])
        await self._proceed_with(version)

    async def _proceed_with(self, version: int) -> None:
        self._tracker.published(version)
        self.production.newest = version
        if self._requests is not None:
            for round_ in self._requests.admitted(version):
                if round_ >= self._admitted:
                    self._admitted = round_ + 1
                    sampled = self._sampled_before.get(round_, set())
                    left_out = self._quarantine.prompts("train", round_)
                    self.production.enqueue(self._requests.of_round(round_, version, sampled, left_out))
        await self._evaluate(version)

    # -- start, resume and end ---------------------------------------------------------------------------------------

    async def _start(self) -> int:
        timeout = self._recipe.timeouts.start
        pools = [self._services.samplers, *self._services.scorers.values()]
        starts = asyncio.gather(*(pool.start() for pool in pools))
        step, _ = await asyncio.gather(self._learner.start(timeout), starts)
        self._tracker.started(step)
        return step

    async def _resume_from(self, step: int) -> None:
        """Take up the work where checkpoint and store stand; for a new run, publish the prior as version 0."""
        if step and await self._stored(self._store.step_groups, step) is None:  # recorded before its checkpoint
            raise self._lost_record(step)
        version, within_round = divmod(step, self._recipe.algorithm.updates_per_round)
        await self.production.carry_on(self._schedule.earliest_round(version))
        if self._requests is not None:
            self._sampled_before = _prompts_by_round(await self._stored(self._store.index), version)
        for earlier in range(version):
            await self._evaluate(earlier)
        if within_round and self._ends_round(step):  # the last round of steps that are trained again was not complete
            await self._publish(version + 1, step)
        elif within_round:  # this version was published before the round's first step
            self._schedule.begin(version, await self._taken_in_round(step))
            await self._proceed_with(version)
        else:  # perhaps not yet: its checkpoint comes first
            await self._publish(version, step)

    async def _taken_in_round(self, step: int) -> list[list[str]]:
        """The groups of each step that the round in progress has done up to `step`."""
        first = step - step % self._recipe.algorithm.updates_per_round + 1
        recorded = [await self._stored(self._store.step_groups, number) for number in range(first, step + 1)]
        if None in recorded:
            raise self._lost_record(first + recorded.index(None))
        return [groups for groups in recorded if groups is not None]

    def _lost_record(self, step: int) -> UserError:
        return UserError(
            f"The sample store {self._store.root} has lost the record of step {step}, which the learner has trained: "
            f"groups might be trained twice; put back the part from its `damaged` folder, name the store that the run "
            f"began with, or set another run.dir."
        )

    async def _evaluate(self, version: int) -> None:
        if self._evaluation is not None:
            await self.production.evaluate(self._evaluation.requests_after, version)

    async def _evaluate_result(self) -> None:
        """Choose the best version on validation prompts, then sample the test prompts from it."""
        evaluation = self._evaluation
        if evaluation is None:
            return
        await self._evaluated("validation", await self._evaluating(evaluation.due_versions))
        best = await self._evaluating(evaluation.best_version)
        await self.production.evaluate(evaluation.requests, "test", best)
        await self._evaluated("test", [0, best])

    async def _evaluated(self, split: Split, versions: list[int]) -> None:
        wanted = {(split, version) for version in versions}
        await self.production.until(
            lambda: wanted <= self.production.evaluated or None,
            f"the evaluation of versions {versions} on {split} prompts",
        )

    # -- the stores, each on its own thread --------------------------------------------------------------------------

    async def _stored(self, function: Callable[..., T], *args: Any) -> T:
        """Call what uses the store that is trained from."""
        return await self.production.training.call(function, *args)

    async def _evaluating(self, function: Callable[..., T], *args: Any) -> T:
        """Call what uses the store of evaluations."""
        return await self.production.evaluating.call(function, *args)


def _prompts_by_round(index: pa.Table, first_round: int) -> dict[int, set[str]]:
    """Ids of the prompts that have a group, by round, from a round on."""
    found: dict[int, set[str]] = {}
    rows = index.filter(pc.greater_equal(index["round"], first_round))
    for round_, prompt_id in zip(rows["round"].to_pylist(), rows["prompt_id"].to_pylist(), strict=True):
        found.setdefault(round_, set()).add(prompt_id)
    return found
