"""Samplers and scorers at work for one run: requests in, groups that are stored, scored and ready out.

    requests ─► samplers ─► store ─► scorers ─► store ─► Schedule, or Evaluation
        ▲                                                     │
        └── admit, evaluate ◄── Conductor: trains, publishes ◄┘

The tasks, and what each waits for:

    task                          waits for                                 unblocked by
    _give_out_requests (1)        a request                                 enqueue
                                  room before the scorers                   Scoring: groups have all their scores
                                  a slot of a sampler                       Pool: a call ends, a replica comes up
    Sampling.sample (1/request)   the sampler's next group                  the sampler
                                  its commit                                CommitQueue
    Scoring._serve (1/scorer)     groups in the scorer's queue              StoreLane._committed
                                  a slot of the scorer                      Pool
    Scoring._score (1/call)       the scores, then their commit             the scorer, CommitQueue
    StoreLane._score_stored (1)   room before the scorers, the store        Scoring, CommitQueue
    Conductor.run                 groups for its next step (ready_for)      TrainingLane.complete, .leave_out
                                  the last results (evaluate_best)          EvaluationLane.report

Training and evaluation are two lanes (`lanes.py`) through the same samplers and scorers, each with its own store.
Everything held in memory is bounded: requests are given out only while scorers keep up, and calls of a store wait for
room.
"""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.requests import Purpose, SampleRequest
from brain_align.deploy.conductor.background import Begin, background_tasks
from brain_align.deploy.conductor.lanes import EvaluationLane, StoreLane, TrainingLane
from brain_align.deploy.conductor.sampling import Sampling
from brain_align.deploy.conductor.scoring import Scoring
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.conductor.waiting_groups import Pending, Turns
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.schedule.evaluation import Split
from brain_align.deploy.schedule.quarantine import Item
from brain_align.deploy.services.services import Services


class GroupPipeline:
    """Keeps samplers and scorers at work, and lets the conductor wait for what they make.

    Other runs may use the same services.
    """

    def __init__(self, recipe: Recipe, plan: RunPlan, tracker: Tracker, services: Services) -> None:
        self._recipe = recipe
        self._plan = plan
        self._samplers = services.samplers
        self.pending = Pending(str(plan.store.root))  # the groups of both lanes that are not complete yet
        self.training = TrainingLane(recipe, plan, tracker, self.pending)
        self.evaluation: EvaluationLane | None = None  # None where nothing is evaluated
        self._lanes: list[StoreLane] = [self.training]
        if plan.evaluation is not None:
            self.evaluation = EvaluationLane(plan.evaluation, recipe, plan, tracker, self.pending)
            self._lanes.append(self.evaluation)
        timeout = recipe.timeouts.lease
        self._sampling = Sampling(
            services.samplers,
            whole=recipe.algorithm.strict,
            timeout=timeout,
            commit=self._commit,
            give_up=self._give_up,
        )
        rows = {name: recipe.groups_per_call(name) for name in services.scorers}
        self.scoring = Scoring(services.scorers, rows, self._lanes, recipe.timeouts, tracker.say)
        self._begun: set[int] = set()  # versions whose evaluation has begun
        self._turns = Turns(self._lanes)
        self._some_requests = asyncio.Event()
        self._recorded: dict[int, list[str]] = {}  # by step, the groups of steps that the checkpoint lacks
        self._waited = 0.0  # seconds
        self._waits_since: float | None = None
        self._begin: Begin

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep all samplers and scorers at work until the block ends; what they are at then is not needed.

        Raises:
            PipelineError, UserError: what ended one of its tasks, or the block.
        """
        opened: list[StoreLane] = []
        try:
            async with background_tasks() as begin:
                self._begin = begin
                for lane in self._lanes:
                    lane.open(begin, self.scoring)
                    opened.append(lane)
                with gc_frozen():
                    begin(self._give_out_requests())
                    self.scoring.start(begin)
                    yield
        finally:
            for lane in opened:
                await lane.close()

    async def take_up(self, step: int) -> None:
        """Continue after a trained step: stored groups that lack scores are scored, the others count as ready."""
        if self.evaluation is not None:
            await self.evaluation.take_up()
        self._recorded = await self.training.queue.call(self._plan.store.recorded_after, step)
        recorded = {group for groups in self._recorded.values() for group in groups}
        await self.training.take_up(step // self._recipe.algorithm.updates_per_round, recorded)

    def admit(self, version: int) -> None:
        """Have sampled what may be sampled now that `version` is the newest."""
        self.enqueue(self.training.admit(version))

    def enqueue(self, requests: Iterable[SampleRequest]) -> None:
        """Have requests sampled and scored."""
        for request in requests:
            self._lane(request.purpose).requests.append(request)
            self.pending.add(request.group_ids)
            self._some_requests.set()

    async def ready_for(self, step: int) -> tuple[list[str], bool]:
        """Wait for the groups that train a step; returns their ids, and whether they are on record.

        If the step was trained before a crash, they are the recorded ones; otherwise the next that are ready. Groups
        that nobody is making are a PipelineError, and so are groups of which none can train.
        """
        recorded = self._recorded.pop(step, None)
        self._waits_since = time.monotonic()
        try:
            if recorded is None:
                what = f"groups for step {step}"
                return await self.pending.until(lambda: self.training.next_batch(step), what), False
            are_ready = self._plan.schedule.are_ready
            what = f"the recorded groups of step {step}"
            return await self.pending.until(lambda: recorded if are_ready(recorded) else None, what), True
        finally:
            self._waited, self._waits_since = self.waited_seconds, None

    async def evaluate(self, version: int) -> None:
        """Begin to evaluate a published version, where it takes part in the choice of the best."""
        if (lane := self.evaluation) is not None and version not in self._begun:
            self._begun.add(version)
            self.enqueue(await lane.queue.call(lane.evaluation.requests_after, version))
            await lane.report()

    async def reason_to_stop(self, version: int) -> str | None:
        """Evaluate a published version, and return why training ends with it (`evaluation.patience`), or None.

        In strict mode the evaluation is waited for, so that the answer does not depend on which was faster; otherwise
        those count that are finished.
        """
        patience = self._recipe.evaluation.patience
        if (lane := self.evaluation) is None or patience is None or not lane.evaluation.is_due(version):
            return None
        due = [one for one in await lane.queue.call(lane.evaluation.due_versions) if one <= version]
        if len(due) <= patience:
            return None
        await self.evaluate(version)
        if self._recipe.algorithm.strict:
            await self.until_evaluated("validation", due)
        return await lane.queue.call(lane.evaluation.stops_with, version)

    async def evaluate_best(self) -> None:
        """Choose the best version on validation prompts, and evaluate it on the test prompts."""
        if (lane := self.evaluation) is None:
            return
        await self.until_evaluated("validation", await lane.queue.call(lane.evaluation.due_versions))
        best = await lane.queue.call(lane.evaluation.best_version)
        self.enqueue(await lane.queue.call(lane.evaluation.requests, "test", best))
        await lane.report()
        await self.until_evaluated("test", [0, best])

    async def until_evaluated(self, split: Split, versions: Collection[int]) -> None:
        """Wait until versions are evaluated on a split."""
        assert self.evaluation is not None, "only what is evaluated is waited for"
        wanted, evaluated = {(split, version) for version in versions}, self.evaluation.evaluated
        what = f"the evaluation of versions {sorted(versions)} on {split} prompts"
        await self.pending.until(lambda: wanted <= evaluated or None, what)

    async def checkpoints_to_keep(self, version: int) -> list[int]:
        """Return the steps of the versions, up to the newest one, that may turn out to be the best."""
        if (lane := self.evaluation) is None:
            return []
        candidates = await lane.queue.call(lane.evaluation.candidates, version)
        return [candidate * self._recipe.algorithm.updates_per_round for candidate in candidates]

    @property
    def waiting_requests(self) -> int:
        """The number of requests that no sampler has yet."""
        return sum(len(lane.requests) for lane in self._lanes)

    @property
    def waited_seconds(self) -> float:
        """Return the seconds that the learner has waited for groups, up to now."""
        return self._waited + (0.0 if self._waits_since is None else time.monotonic() - self._waits_since)

    async def _give_out_requests(self) -> None:
        while True:
            await self._some_requests.wait()
            await self.scoring.room()
            slot = await self._samplers.acquire()
            request = self._turns.next(lambda lane: lane.requests).next_request()
            if not self.waiting_requests:
                self._some_requests.clear()
            if request.prompts:
                self._begin(self._sampling.sample(request, slot))
            else:
                slot.release()

    async def _commit(self, request: SampleRequest, groups: pa.RecordBatch) -> None:
        await self._lane(request.purpose).queue.append_groups(groups)

    def _give_up(self, item: Item) -> None:
        self._lane(item.purpose).give_up(item)

    def _lane(self, purpose: Purpose) -> StoreLane:
        if purpose == "train":
            return self.training
        assert self.evaluation is not None, "only an evaluation has requests that are not for training"
        return self.evaluation


_frozen: list[object] = []  # the blocks of `gc_frozen` in progress in this process


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Leave all present objects out of garbage collection until the block ends.

    Modules, prompts and services are hundreds of thousands of objects that stay, and looking at all of them would hold
    up the process for a tenth of a second each time. Present garbage is collected first, as it would stay, too. Where
    blocks overlap, e.g. those of runs side by side, objects are collected again after the last one.
    """
    block = object()
    gc.collect()
    gc.freeze()
    _frozen.append(block)
    try:
        yield
    finally:
        _frozen.remove(block)
        if not _frozen:
            gc.unfreeze()
