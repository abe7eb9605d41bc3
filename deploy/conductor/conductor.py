"""The conductor: Algorithm 1 over separate sampling, scoring and training services."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import PipelineError, UserError
from brain_align.deploy.conductor.group_pipeline import GroupPipeline
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.conductor.training_batches import TrainingBatches
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.services.services import Services
from brain_align.deploy.services.trial import notes_of

T = TypeVar("T")


class Conductor:
    """Algorithm 1 over services that may come and go.

        GroupPipeline:  prompts ─► samplers ─► store ─► scorers ─► store ─► Schedule
        Conductor:      Schedule ─► learner ─► STEPS ─► checkpoint ─► published version ─► GroupPipeline

    It holds nothing that the store, the published versions and the learner's checkpoint do not hold: a run that is
    killed at any moment and started again continues from there.
    """

    def __init__(self, recipe: Recipe, plan: RunPlan, tracker: Tracker, services: Services) -> None:
        self._store = plan.store
        self._trial, self._trial_timeout = plan.trial, recipe.timeouts.lease
        self._schedule = plan.schedule
        self._checkpoint_steps = recipe.learner.checkpoint_steps
        self._objective = f"objective.name={recipe.objective.name}"
        self._batches = TrainingBatches(recipe, plan)
        self._tracker = tracker
        self._services = services
        self._learner = services.learner
        self._taking_a_step, self._saving = asyncio.Lock(), asyncio.Lock()
        self._done = self._saved = 0  # the last step that is recorded, and the last of which there is a checkpoint
        self.groups = GroupPipeline(recipe, plan, tracker, services)

    async def run(self) -> None:
        """Run, or resume, to the end.

        Raises:
            PipelineError: a service failed for good (named, with its log).
            UserError: something that the user must put right came up in a service.
        """
        step = await self._start()
        async with self.groups.running():
            await self._resume(step)
            await self._train(step)
            await self.groups.evaluate_best()

    async def stop(self) -> int | None:
        """Finish the step under way, let no other begin, and write a checkpoint; returns its step, None if it is old.

        What is asked of the services in `run` goes on meanwhile: cancel that afterwards.
        """
        await self._taking_a_step.acquire()  # for good
        return self._done if await self._save(self._done) else None

    async def _save(self, step: int) -> bool:
        """Write the checkpoint of a step, unless there is one; return whether it was written."""
        async with self._saving:
            if step == self._saved:
                return False
            keep = await self.groups.checkpoints_to_keep(self._schedule.round_of(step))
            await self._learner.save(step, keep=keep)
            self._saved = step
            return True

    async def _train(self, done: int) -> None:
        """Lines 4-22: k optimiser steps per round on stored groups, then the policy becomes the proposal."""
        self._done = self._saved = done
        ended = done if self._schedule.ends_round(done) else 0
        step = done
        while step < self._schedule.last_step:
            if await self._train_step(step + 1):
                step += 1
            elif step < self._schedule.last_step or step == ended:
                continue  # with other groups; or what turned out to be the last step has ended its round already
            if self._schedule.ends_round(step) or step % self._checkpoint_steps == 0:
                await self._save(step)
            if self._schedule.ends_round(step):
                ended = step
                await self._publish(step)
        if not step:
            raise PipelineError("No group trains anything, so that there is no step: look at their values and rewards.")

    async def _train_step(self, step: int) -> bool:
        """Train a step on the groups that are next; return whether they trained anything, and so were a step."""
        group_ids, recorded = await self.groups.ready_for(step)
        if not group_ids:  # all that a repeated step took is left out
            self._schedule.pass_over(group_ids)
            return False
        batch = await self._stored(self._batches.batch, group_ids)
        async with self._taking_a_step:
            return await self._take_step(step, group_ids, batch, recorded=recorded)

    async def _take_step(self, step: int, group_ids: list[str], batch: pa.RecordBatch, *, recorded: bool) -> bool:
        """Train a batch as a step, and record it; return whether it trained anything."""
        report = await self._learner.train_step(step, batch)
        self._tracker.say(*report.notes)
        if report.metrics["trained_prompts"]:
            self._batches.check_prior(step, report.metrics)
            await self._record(step, batch, report.metrics)
        elif recorded:  # by an earlier version, which counted it
            await self._learner.skip(step)
        else:
            self._tracker.say(
                f"Step {step}: none of its {batch.num_rows} prompts has outputs that {self._objective} can use (each "
                f"lacks values, or has equal rewards); they are left out of this round, and others are trained on."
            )
            self._schedule.pass_over(group_ids)
            return False
        self._schedule.take(group_ids)
        self._done = step
        return True

    async def _record(self, step: int, batch: pa.RecordBatch, metrics: dict[str, float]) -> None:
        """Write the step's row: groups are in the store before this, and the checkpoint comes after it."""
        round_ = self._schedule.round_of(step)
        row = {
            "step": step,
            "round": round_,
            "group_ids": batch["group_id"].to_pylist(),
            "published_version": round_ + 1 if self._schedule.ends_round(step) else None,
            "metrics": metrics,
            "finished_at": time.time(),
        }
        if await self._stored(self._store.append_step, row):
            staleness = round_ - pc.min(batch["proposal_version"]).as_py()
            self._tracker.stepped(step, round_, int(metrics["trained_prompts"]), metrics, staleness)

    async def _publish(self, step: int) -> None:
        """Line 21: q' <- q_theta. The checkpoint of this step exists already."""
        version = self._schedule.version_after(step)
        await self._learner.publish(version, step)
        if step < self._schedule.last_step and (reason := await self.groups.reason_to_stop(version)):
            self._tracker.published(version)
            self._tracker.say(reason)
            self._schedule.last_step = step
            return
        if step < self._schedule.last_step:
            self._schedule.begin(version, [])
        await self._continue_with(version)

    async def _continue_with(self, version: int) -> None:
        """Have sampled what may be sampled from the new version, and have the version evaluated."""
        self._tracker.published(version)
        self.groups.admit(version)  # keeps r - v <= max_staleness
        await self.groups.evaluate(version)

    async def _start(self) -> int:
        """Start all services; returns the step of the learner's checkpoint, 0 for a new run."""
        step, tried = await asyncio.gather(
            self._learner.start(), self._services.start_pools(self._trial, self._trial_timeout)
        )
        self._tracker.say(*notes_of(tried))
        self.groups.scoring.tried(tried)
        self._tracker.started(step)
        return step

    async def _resume(self, step: int) -> None:
        """Continue where checkpoint and store stand; for a new run, publish the prior as version 0."""
        taken = await self._stored(self._taken_in_round, step)
        await self.groups.take_up(step)
        version = self._schedule.version_after(step)
        for earlier in range(version):
            await self.groups.evaluate(earlier)
        if self._schedule.ends_round(step):
            await self._publish(step)  # perhaps again: the checkpoint comes first
        else:
            self._schedule.begin(version, taken)
            await self._continue_with(version)

    def _taken_in_round(self, step: int) -> list[list[str]]:
        """Return the groups of each step of a round, up to `step`; of a round that `step` ends, only its own.

        Raises:
            UserError: a record is lost.
        """
        begun = self._schedule.round_of(step) * self._schedule.updates_per_round
        first = step if self._schedule.ends_round(step) else begun + 1
        taken = []
        for number in range(max(first, 1), step + 1):  # none for step 0, the prior
            if (groups := self._store.step_groups(number)) is None:
                raise UserError(
                    f"The sample store {self._store.root} has lost the record of step {number}, which the learner has "
                    f"trained: groups might be trained twice; put back the part from its `damaged` folder, name the "
                    f"store that the run began with, or set another run.dir."
                )
            taken.append(groups)
        return taken

    async def _stored(self, function: Callable[..., T], *args: Any) -> T:
        """Call what uses the store, on the store's thread."""
        return await self.groups.training.queue.call(function, *args)
