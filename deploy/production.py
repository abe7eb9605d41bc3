"""Leases become groups, and groups become scored ones: the samplers and scorers at work, and who waits for them."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from common.config.recipe import Recipe
from common.errors import PipelineError
from common.leases import Lease
from deploy.run_store import RunStore
from deploy.services import Services
from deploy.tracking import Tracker
from deploy.work import Work

T = TypeVar("T")

_SCORED_AT_ONCE = 16
"""Leases from former starts that are given to the scorers at a time: enough to keep many replicas busy, and few enough
that a large store is not read into memory."""


class Production:
    """Gives leases to samplers and groups to scorers, and commits what they return.

    Args:
        recipe: says what is a lease, and how long one may take.
        work: the stores that get groups and scores, and the schedule that is told which groups are ready.
        tracker: is told what happens.
        services: do the work.
    """

    def __init__(self, recipe: Recipe, work: Work, tracker: Tracker, services: Services) -> None:
        self._recipe = recipe
        self._store = work.store
        self._schedule = work.schedule
        self._training_scorers = work.training_scorers
        self._evaluation = work.evaluation
        self._tracker = tracker
        self._samplers = services.samplers
        self._scorers = services.scorers
        self._leases: deque[Lease] = deque()
        self._busy = 0  # leases that are being sampled or scored
        self._changed = asyncio.Condition()  # of anything that somebody waits for
        self._tasks: asyncio.TaskGroup
        self._workers: list[asyncio.Task[None]] = []

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Keep all samplers at work, as part of a group of tasks."""
        self._tasks = tasks
        self._workers = [tasks.create_task(self._sample()) for _ in self._samplers.replicas]

    def stop(self) -> None:
        """Let the workers end, who else wait for further leases."""
        for worker in self._workers:
            worker.cancel()

    async def enqueue(self, leases: Iterable[Lease]) -> None:
        """Have leases sampled and scored, training's before evaluation's."""
        async with self._changed:
            self._leases.extend(leases)
            ordered = sorted(self._leases, key=lambda lease: lease.purpose != "train")  # stable: training first
            self._leases = deque(ordered)
            self._report_evaluations()
            self._changed.notify_all()

    def carry_on(self, first_round: int) -> None:
        """Have what was sampled before this start scored where it lacks scores; what has them all is ready at once.

        Args:
            first_round: groups of earlier rounds are not trained any more, so that nobody asks whether they are ready.
        """
        self._carry_on_with(self._store, training=True, first_round=first_round)
        if self._evaluation is not None:
            self._carry_on_with(self._evaluation.store, training=False, first_round=0)

    async def until(self, found: Callable[[], T | None], what: str) -> T:
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

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _sample(self) -> None:
        """One worker: keeps one sampler busy with the next lease."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._leases)
                lease = self._leases.popleft()
                self._busy += 1
            training = lease.purpose == "train"
            groups = await self._samplers.call("generate", lease, timeout=self._recipe.timeouts.lease)
            groups = self._commit(_in_order(groups, lease), self._store_of(training))
            self._tracker.sampled(groups, training=training)
            self._tasks.create_task(self._score_and_finish(groups, training=training))

    def _commit(self, groups: pa.RecordBatch, store: RunStore) -> pa.RecordBatch:
        """Commit a lease; returns it as the store has it, where another writer was first with some group of it."""
        if store.append_groups(groups) == groups.num_rows:
            return groups
        return store.groups(groups["group_id"].to_pylist()).combine_chunks().to_batches()[0]

    async def _score_and_finish(self, groups: pa.RecordBatch, *, training: bool) -> None:
        await self._score(groups, training=training)
        await self._finish()

    async def _finish(self) -> None:
        """Somebody is done with a piece of work."""
        async with self._changed:
            self._busy -= 1
            self._changed.notify_all()

    async def _score(self, groups: pa.RecordBatch, *, training: bool) -> None:
        """Have every scorer annotate groups that are in the store; then they are ready."""
        store = self._store_of(training)
        await asyncio.gather(*(self._score_with(name, groups, store) for name in self._wanted(training)))
        async with self._changed:
            if training:
                self._make_ready(groups)
                self._tracker.ready(groups.num_rows)
            elif self._evaluation is not None:
                self._evaluation.scored(groups["group_id"].to_pylist())
                self._report_evaluations()
            self._changed.notify_all()

    async def _score_with(self, name: str, groups: pa.RecordBatch, store: RunStore) -> None:
        if all(store.has_score(group, name) for group in groups["group_id"].to_pylist()):
            return
        scores = await self._scorers[name].call("score", groups, timeout=self._recipe.timeouts.lease)
        store.append_scores(scores)
        self._tracker.scored(name, groups, scores)

    def _carry_on_with(self, store: RunStore, *, training: bool, first_round: int) -> None:
        index = store.index()
        lacking = {group for name in self._wanted(training) for group in store.unscored(name)}
        if training:
            is_lacking = pc.is_in(index["group_id"], value_set=pa.array(list(lacking), pa.string()))
            complete = index.filter(pc.invert(is_lacking))
            self._make_ready(complete.filter(pc.greater_equal(complete["round"], first_round)))
            self._tracker.ready(complete.num_rows)
        if lacking:
            self._busy += 1
            in_order = [group for group in index["group_id"].to_pylist() if group in lacking]
            self._tasks.create_task(self._score_stored(store, in_order, training=training))

    async def _score_stored(self, store: RunStore, groups: list[str], *, training: bool) -> None:
        """Score groups from the store, in pieces as large as a lease."""
        free = asyncio.Semaphore(_SCORED_AT_ONCE)

        async def score(piece: pa.RecordBatch) -> None:
            try:
                await self._score(piece, training=training)
            finally:
                free.release()

        rows = self._recipe.sampler.lease_prompts
        async with asyncio.TaskGroup() as pieces:
            for batch in store.batches(group_ids=groups):
                for start in range(0, batch.num_rows, rows):
                    await free.acquire()
                    pieces.create_task(score(batch.slice(start, rows)))
        await self._finish()

    def _make_ready(self, groups: pa.RecordBatch | pa.Table) -> None:
        columns = (groups[name].to_pylist() for name in ("round", "prompt_id", "group_id"))
        for round_, prompt_id, group in zip(*columns, strict=True):
            self._schedule.add(round_, prompt_id, group)

    def _report_evaluations(self) -> None:
        if self._evaluation is not None:
            for split, version, result in self._evaluation.newly_complete():
                self._tracker.evaluated(split, version, result)

    def _wanted(self, training: bool) -> list[str]:
        if training or self._evaluation is None:
            return self._training_scorers
        return self._evaluation.scorers

    def _store_of(self, training: bool) -> RunStore:
        if training or self._evaluation is None:
            return self._store
        return self._evaluation.store


def _in_order(groups: pa.RecordBatch, lease: Lease) -> pa.RecordBatch:
    """The groups of a lease in the order of its prompts; they come as they are finished."""
    return groups.take(pc.index_in(pa.array(lease.group_ids), value_set=groups["group_id"]))
