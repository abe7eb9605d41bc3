"""The conductor: Algorithm 1 over separate sampling, scoring and training services.

It holds nothing that the store, the published versions and the learner's checkpoint do not hold: killed at any moment
and started again, it goes on where they stand.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

import pyarrow as pa

from common.config.recipe import Recipe
from common.errors import PipelineError, UserError
from common.leases import Lease
from common.schemas import PRIOR
from common.store import SampleStore
from common.training_batch import training_batch
from deploy.evaluation import Evaluation, Split
from deploy.rounds import LeasePlan, Rounds
from deploy.services import Services
from deploy.tracking import Tracker
from learner.step_report import StepReport

T = TypeVar("T")


class Conductor:
    """Keeps samplers, scorers and learner at work until all rounds are done and evaluated."""

    def __init__(
        self,
        recipe: Recipe,
        store: SampleStore,
        rounds: Rounds,
        plan: LeasePlan,
        evaluation: Evaluation,
        tracker: Tracker,
        services: Services,
    ) -> None:
        self._recipe = recipe
        self._store = store
        self._rounds = rounds
        self._plan = plan
        self._evaluation = evaluation
        self._tracker = tracker
        self._samplers = services.samplers
        self._scorers = services.scorers
        self._learner = services.learner
        self._version = -1  # the newest proposal version; also the round that is being trained
        self._admitted = 0  # rounds whose leases have been given out
        self._leases: deque[Lease] = deque()
        self._busy = 0  # leases that are being sampled or scored
        self._changed = asyncio.Condition()  # of anything below or above that somebody waits for
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        """Run, or resume, to the end.

        Raises:
            PipelineError: a service failed for good (named, with its log).
            UserError: something that the user must put right came up in a service.
        """
        try:
            async with asyncio.TaskGroup() as self._tasks:
                step = await self._start()
                workers = [self._tasks.create_task(self._sample()) for _ in self._samplers.replicas]
                self._carry_on_scoring()
                await self._resume_from(step)
                await self._train(step)
                await self._evaluate_result()
                for worker in workers:
                    worker.cancel()
        except ExceptionGroup as failures:
            raise _first(failures) from failures

    # -- Algorithm 1 -------------------------------------------------------------------------------------------------

    async def _train(self, step: int) -> None:
        """Lines 4-22 of Algorithm 1: k optimiser steps on stored groups, then the policy becomes the proposal."""
        algorithm, timeout = self._recipe.algorithm, self._recipe.timeouts.step
        taken = self._taken_in_round(step)
        while (round_ := step // algorithm.updates_per_round) < algorithm.rounds:
            step += 1
            ends_round = step % algorithm.updates_per_round == 0
            group_ids = await self._next_groups(step, round_, taken)
            batch = training_batch(self._store, group_ids, reward=self._recipe.reward, prior=PRIOR)
            report: StepReport = await self._learner.call("train_step", step, batch, timeout=timeout)
            self._tracker.say(*report.notes)
            self._record_step(step, round_, group_ids, round_ + 1 if ends_round else None, report.metrics)
            taken.append(group_ids)
            if ends_round or step % self._recipe.learner.checkpoint_steps == 0:
                await self._learner.call("save", step, timeout=timeout)
            if ends_round:
                taken = []
                await self._publish(round_ + 1, step)

    def _taken_in_round(self, step: int) -> list[list[str]]:
        """The groups of each step that the round in progress has done up to `step`."""
        first = step - step % self._recipe.algorithm.updates_per_round + 1
        recorded = [self._store.step_groups(number) for number in range(first, step + 1)]
        if None in recorded:
            raise UserError(
                f"The sample store has lost the record of step {first + recorded.index(None)}, so that its groups "
                f"might be trained twice; put back the part from its `damaged` folder, or set another run.dir."
            )
        return [groups for groups in recorded if groups is not None]

    async def _next_groups(self, step: int, round_: int, taken: list[list[str]]) -> list[str]:
        """The groups of a step: those recorded, if it was done before a crash; else the next that are ready."""
        recorded = self._store.step_groups(step)
        if recorded is None:
            return await self._until(lambda: self._rounds.next_batch(round_, taken), f"groups for step {step}")
        return await self._until(
            lambda: recorded if self._rounds.are_ready(recorded) else None, f"the recorded groups of step {step}"
        )

    def _record_step(
        self, step: int, round_: int, group_ids: list[str], published: int | None, metrics: dict[str, float]
    ) -> None:
        row = {
            "step": step,
            "round": round_,
            "group_ids": group_ids,
            "published_version": published,
            "metrics": metrics,
            "finished_at": time.time(),
        }
        if self._store.append_step(row):
            self._tracker.stepped(step, round_, len(group_ids), metrics)

    async def _publish(self, version: int, step: int) -> None:
        """Line 21 of Algorithm 1: q' <- q_theta; then admit what may be sampled from it, and evaluate it."""
        await self._learner.call("publish", version, step, timeout=self._recipe.timeouts.step)
        await self._proceed_with(version)

    async def _proceed_with(self, version: int) -> None:
        self._version = version
        self._tracker.published(version)
        for round_ in self._rounds.admitted(version):
            if round_ >= self._admitted:
                self._admitted = round_ + 1
                await self._admit_round(round_)
        await self._enqueue_evaluations(version)

    async def _admit_round(self, round_: int) -> None:
        prompts = self._rounds.prompts(round_)
        leases = self._plan.leases("train", round_, self._version, self._recipe.sampling.n, prompts)
        batches = self._store.group_batches()
        sampled = {
            name for batch in batches if batch["round"][0].as_py() == round_ for name in batch["prompt_id"].to_pylist()
        }
        await self._enqueue(lease for lease in leases if any(one.prompt_id not in sampled for one in lease.prompts))

    # -- sampling and scoring ----------------------------------------------------------------------------------------

    async def _sample(self) -> None:
        """One worker: keeps one sampler busy with the next lease, training's before evaluation's."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._leases)
                lease = self._leases.popleft()
                self._busy += 1
            training = lease.purpose == "train"
            groups = await self._samplers.call("generate", lease, timeout=self._recipe.timeouts.lease)
            self._store_of(training).append_groups(groups)
            self._tracker.sampled(groups, training=training)
            self._tasks.create_task(self._score(groups, training=training))

    async def _score(self, groups: pa.RecordBatch, *, training: bool) -> None:
        """Have every scorer annotate groups that are in the store; then they are ready."""
        store = self._store_of(training)
        wanted = [name for name in self._scorers if not training or self._is_training_scorer(name)]
        await asyncio.gather(*(self._score_with(name, groups, store) for name in wanted))
        async with self._changed:
            self._busy -= 1
            if training:
                self._make_ready(groups)
                self._tracker.ready(groups)
            for split, version, result in self._evaluation.newly_complete():
                self._tracker.evaluated(split, version, result)
            self._changed.notify_all()

    async def _score_with(self, name: str, groups: pa.RecordBatch, store: SampleStore) -> None:
        if all(store.has_score(group, name) for group in groups["group_id"].to_pylist()):
            return
        scores = await self._scorers[name].call("score", groups, timeout=self._recipe.timeouts.lease)
        store.append_scores(scores)
        self._tracker.scored(name, groups, scores)

    def _make_ready(self, groups: pa.RecordBatch) -> None:
        columns = (groups[name].to_pylist() for name in ("round", "prompt_id", "group_id"))
        for round_, prompt_id, group in zip(*columns, strict=True):
            self._rounds.add(round_, prompt_id, group)

    def _is_training_scorer(self, name: str) -> bool:
        return name == PRIOR or self._recipe.scorers[name].use == "training"

    def _store_of(self, training: bool) -> SampleStore:
        return self._store if training else self._evaluation.store

    async def _enqueue(self, leases: Iterable[Lease]) -> None:
        async with self._changed:
            self._leases.extend(leases)
            ordered = sorted(self._leases, key=lambda lease: lease.purpose != "train")  # stable: training first
            self._leases = deque(ordered)
            self._changed.notify_all()

    # -- start, resume and end ---------------------------------------------------------------------------------------

    async def _start(self) -> int:
        timeout = self._recipe.timeouts.start
        pools = [self._samplers, *self._scorers.values()]
        starts = asyncio.gather(*(pool.start() for pool in pools))
        step, _ = await asyncio.gather(self._learner.start(timeout), starts)
        self._tracker.started(step)
        return step

    async def _resume_from(self, step: int) -> None:
        """Take up the work where checkpoint and store stand; for a new run, publish the prior as version 0."""
        version, within_round = divmod(step, self._recipe.algorithm.updates_per_round)
        for earlier in range(version):
            await self._enqueue_evaluations(earlier)
        if within_round:  # this version was published before the round's first step
            await self._proceed_with(version)
        else:  # perhaps not yet: its checkpoint comes first
            await self._publish(version, step)

    def _carry_on_scoring(self) -> None:
        """What was sampled before a crash is scored now, lease by lease as it was sampled, or is ready at once."""
        for training in (True, False):
            store = self._store_of(training)
            for batch in store.group_batches():
                self._busy += 1
                self._tasks.create_task(self._score(batch, training=training))

    async def _enqueue_evaluations(self, version: int) -> None:
        if self._evaluation.is_due(version):
            await self._enqueue(self._evaluation_leases("validation", version))
        if version == 0:
            await self._enqueue(self._evaluation_leases("test", version))

    def _evaluation_leases(self, split: Split, version: int) -> list[Lease]:
        leases = self._plan.leases(split, version, version, 1, self._evaluation.prompts(split))
        return [lease for lease in leases if not all(map(self._evaluation.store.has_group, lease.group_ids))]

    async def _evaluate_result(self) -> None:
        """Choose the best version on validation prompts, then sample the test prompts from it."""
        await self._evaluated("validation", self._evaluation.due_versions())
        best = self._evaluation.best_version()
        await self._enqueue(self._evaluation_leases("test", best))
        await self._evaluated("test", [0, best])

    async def _evaluated(self, split: Split, versions: list[int]) -> None:
        await self._until(
            lambda: all(self._evaluation.is_complete(split, version) for version in versions) or None,
            f"the evaluation of versions {versions} on {split} prompts",
        )

    async def _until(self, found: Callable[[], T | None], what: str) -> T:
        """Wait until `found()` gives something; ends, as every call to a service has its time limit.

        Raises:
            PipelineError: nobody is at work on it.
        """
        async with self._changed:
            while (value := found()) is None:
                if not self._leases and not self._busy:
                    raise PipelineError(
                        f"The run waits for {what}, which nobody is making: the sample store {self._store.root} has "
                        f"lost what it once held; put back what is in its `damaged` folder, or set another run.dir."
                    )
                await self._changed.wait()
        return value


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    """The first single exception in a group of groups: what failed before the rest was cancelled."""
    failure: Exception = failures
    while isinstance(failure, ExceptionGroup):
        failure = failure.exceptions[0]
    return failure
