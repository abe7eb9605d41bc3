"""Samplers and scorers at work for one run: what they are given, and who waits for what they make."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import PipelineError
from brain_align.common.requests import SampleRequest
from brain_align.common.store.commit_queue import CommitQueue
from brain_align.common.store.overlay import Store
from brain_align.deploy.conductor.sampling import Sampling
from brain_align.deploy.conductor.scoring import Events, Samples, Scoring
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.schedule.evaluation import Result, Split
from brain_align.deploy.schedule.quarantine import SAMPLER, Item
from brain_align.deploy.schedule.request_plan import RequestPlan
from brain_align.deploy.schedule.round_prompts import without_prompts
from brain_align.deploy.services.services import Services

T = TypeVar("T")

_EVALUATION_EVERY = 8
"""Of so many requests one is evaluation's, while both wait: results come in time, and training keeps the samplers."""


class GroupPipeline(Events):
    """Requests in, groups that are sampled, scored and ready out.

    Everything that it holds in memory has a bound: requests are given out only while scorers keep up, and calls of a
    store wait for room.

    Args:
        recipe: says what is a request, and how long one may take.
        work: the stores that get groups and scores, and the schedule that is told which groups are ready.
        tracker: is told what happens.
        services: do the work; other runs may use the same.

    Attributes:
        evaluated: what is evaluated completely.
        newest: the version that was published last.
    """

    def __init__(self, recipe: Recipe, work: RunPlan, tracker: Tracker, services: Services) -> None:
        self.evaluated: set[tuple[Split, int]] = set()
        self.newest = 0
        self._waited = 0.0  # seconds
        self._waits_since: float | None = None
        self._recipe = recipe
        self._work = work
        self._schedule = work.schedule
        self._evaluation = work.evaluation
        self._tracker = tracker
        self._samplers = services.samplers
        timeout = recipe.timeouts.lease
        self._sampling = Sampling(
            services.samplers,
            whole=recipe.algorithm.strict,
            timeout=timeout,
            commit=self._commit,
            give_up=self._give_up,
        )
        rows = {name: recipe.groups_per_call(name) for name in services.scorers}
        self.scoring = Scoring(services.scorers, rows, timeout, self)
        self._requests: tuple[deque[SampleRequest], deque[SampleRequest]] = (
            deque(),
            deque(),
        )  # training's, then evaluation's
        self._some_requests = asyncio.Event()
        self._training_in_a_row = 0  # requests
        self._unfinished: set[str] = set()  # groups that are being sampled or scored, or will be
        self._changed = asyncio.Event()  # something that somebody waits for
        self._tasks: asyncio.TaskGroup
        self._under_way: set[asyncio.Task[None]] = set()
        self._stores: dict[bool, CommitQueue] = {}  # training's, evaluation's

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Keep all samplers and scorers at work, as part of a group of tasks."""
        self._tasks = tasks
        self._stores[True] = CommitQueue(self._work.store, "store", partial(self._committed, True))
        self._stores[False] = self._stores[True]
        if self._evaluation is not None:
            self._stores[False] = CommitQueue(self._evaluation.store, "evaluation", partial(self._committed, False))
        self._begin(self._give_out_requests())
        self.scoring.start(self._begin, self._stores[True], self._stores[False])

    def stop(self) -> None:
        """End all tasks: nothing more is needed, also where something is still being made."""
        for task in self._under_way:
            task.cancel()

    async def close(self) -> None:
        """Let the stores go, once what was given to them is written."""
        for thread in {*self._stores.values()}:
            await asyncio.to_thread(thread.close)

    # -- what the conductor asks for ---------------------------------------------------------------------------------

    @property
    def training(self) -> CommitQueue:
        """The store that is trained from."""
        return self._stores[True]

    @property
    def evaluating(self) -> CommitQueue:
        """The store of evaluations, on whose thread all methods of `Evaluation` are called."""
        return self._stores[False]

    @property
    def waiting_requests(self) -> int:
        """Requests that no sampler has yet."""
        return sum(map(len, self._requests))

    @property
    def waited_seconds(self) -> float:
        """How long the learner has waited for groups, up to now."""
        return self._waited + (0.0 if self._waits_since is None else time.monotonic() - self._waits_since)

    def enqueue(self, requests: Iterable[SampleRequest]) -> None:
        """Have requests sampled and scored, most of training's before evaluation's."""
        for request in requests:
            self._requests[request.purpose != "train"].append(request)
            self._unfinished.update(request.group_ids)
        if self.waiting_requests:
            self._some_requests.set()

    async def evaluate(self, requests_of: Callable[..., list[SampleRequest]], *args: Any) -> None:
        """Have the requests sampled that a method of `Evaluation` names."""
        self.enqueue(await self.evaluating.call(requests_of, *args))
        await self._report_evaluations()

    async def carry_on(self, first_round: int) -> None:
        """Have what was sampled before this start scored where it lacks scores; what has them all is ready at once.

        Args:
            first_round: groups of earlier rounds are not trained any more, so that nobody asks whether they are ready.
        """
        for item in self._work.quarantine:
            if item.purpose == "train":
                self._leave_out_of_training(item)
        if self._evaluation is not None:
            await self.evaluating.call(self._evaluation.leave_out, list(self._work.quarantine))
            await self._carry_on_with(training=False)
        complete = await self._carry_on_with(training=True)
        self._make_ready(complete.filter(pc.greater_equal(complete["round"], first_round)))
        self._tracker.ready(complete.num_rows)

    async def until(self, found: Callable[[], T | None], what: str) -> T:
        """Wait until `found()` gives something; ends, as every call to a service has its time limit.

        Raises:
            PipelineError: nobody is at work on it.
        """
        while (value := found()) is None:
            if not self._unfinished:
                raise PipelineError(
                    f"The run waits for {what}, which nobody is making: the sample store {self._work.store.root} has "
                    f"lost what it once held; put back what is in its `damaged` folder, or set another run.dir."
                )
            self._changed.clear()
            await self._changed.wait()
        return value

    async def until_ready(self, groups: Callable[[], list[str] | None], what: str) -> list[str]:
        """As `until`, for groups that the learner needs to go on."""
        self._waits_since = time.monotonic()
        try:
            return await self.until(groups, what)
        finally:
            self._waited, self._waits_since = self.waited_seconds, None

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    # -- sampling ----------------------------------------------------------------------------------------------------

    async def _give_out_requests(self) -> None:
        while True:
            await self._some_requests.wait()
            await self.scoring.room()
            slot = await self._samplers.acquire()
            request = self._next_request()
            if request.prompts:
                self._begin(self._sampling.sample(request, slot))
            else:
                slot.release()

    def _next_request(self) -> SampleRequest:
        training, evaluation = self._requests
        if evaluation and (not training or self._training_in_a_row >= _EVALUATION_EVERY - 1):
            self._training_in_a_row = 0
            request = evaluation.popleft()
        else:
            self._training_in_a_row += 1
            request = self._up_to_date(training.popleft())
        if not self.waiting_requests:
            self._some_requests.clear()
        return request

    def _up_to_date(self, request: SampleRequest) -> SampleRequest:
        """A request for training after its wait: from the newest version, without prompts found deadly meanwhile."""
        if self._work.requests is None:
            return request
        new = self._work.requests.up_to_date(request, self.newest)
        new = without_prompts(new, self._work.quarantine.prompts("train", request.round))  # the schedule knows of these
        if new.group_ids != request.group_ids:
            self._unfinished.update(new.group_ids)
            self._finish(set(request.group_ids).difference(new.group_ids))
        return new

    async def _commit(self, request: SampleRequest, groups: pa.RecordBatch) -> None:
        await self._stores[request.purpose == "train"].append_groups(groups)

    def _committed(self, training: bool, groups: pa.RecordBatch, rows: Sequence[int]) -> None:
        """Have groups scored that were committed together: of several requests, or parts of one, with so many each."""
        self._tracker.sampled(groups, training=training)
        self.scoring.put(Samples(training, groups), self._wanted(training), rows)

    # -- scoring -----------------------------------------------------------------------------------------------------

    def scored(self, scorer: str, samples: Samples, scores: pa.RecordBatch) -> None:
        """See `Events`."""
        self._tracker.scored(scorer, samples.groups, scores)

    def complete(self, samples: Samples, groups: Collection[str]) -> None:
        """See `Events`."""
        if not samples.training:
            self._begin(self._finish_evaluation(groups))
            return
        rows = samples.groups
        if len(groups) != rows.num_rows:
            rows = rows.filter(pa.array([one in groups for one in samples.ids]))
        self._make_ready(rows)
        self._tracker.ready(len(groups))
        self._finish(groups)

    def failed(self, scorer: str, samples: Samples, error: PipelineError) -> None:
        """See `Events`."""
        row = samples.groups.select(["lease_id", "round", "prompt_id", "group_id"]).to_pylist()[0]
        purpose = "train" if samples.training else RequestPlan.purpose_of(row["lease_id"])
        self._give_up(Item(purpose, row["round"], row["prompt_id"], row["group_id"], scorer, str(error)))

    async def _carry_on_with(self, *, training: bool) -> pa.Table:
        """Have stored groups scored that lack values; returns the light rows of the others."""
        store = self._store_of(training)
        wanted, quarantined = self._wanted(training), self._work.quarantine.groups

        def look() -> tuple[pa.Table, dict[str, set[str]]]:
            return store.index(), {name: set(store.unscored(name)) - quarantined for name in wanted}

        index, unscored = await self._stores[training].call(look)
        unusable = pa.array(list(quarantined.union(*unscored.values())), pa.string())
        is_unusable = pc.is_in(index["group_id"], value_set=unusable)
        lacking = [one for one in index["group_id"].filter(is_unusable).to_pylist() if one not in quarantined]
        if lacking:
            self._unfinished.update(lacking)
            self._begin(self._score_stored(lacking, unscored, training=training))
        return index.filter(pc.invert(is_unusable))

    async def _score_stored(self, groups: list[str], unscored: dict[str, set[str]], *, training: bool) -> None:
        """Read groups that lack scores, only as fast as they are scored."""
        batches = self._store_of(training).batches(group_ids=groups)
        rows = self._recipe.sampler.lease_prompts
        while (batch := await self._stores[training].call(next, batches, None)) is not None:
            for start in range(0, batch.num_rows, rows):
                await self.scoring.room()
                self.scoring.put_stored(Samples(training, batch.slice(start, rows)), unscored)

    # -- what comes of it --------------------------------------------------------------------------------------------

    def _make_ready(self, groups: pa.RecordBatch | pa.Table) -> None:
        columns = (groups[name].to_pylist() for name in ("round", "prompt_id", "group_id"))
        for round_, prompt_id, group in zip(*columns, strict=True):
            self._schedule.add(round_, prompt_id, group)

    def _finish(self, groups: Iterable[str]) -> None:
        self._unfinished.difference_update(groups)
        self._changed.set()

    async def _finish_evaluation(self, groups: Collection[str]) -> None:
        evaluation = self._evaluation
        assert evaluation is not None, "only an evaluation has groups that are not for training"
        await self.evaluating.call(evaluation.scored, groups)
        await self._report_evaluations()
        self._finish(groups)

    async def _leave_out_of_evaluation(self, item: Item) -> None:
        assert self._evaluation is not None, "only an evaluation has groups that are not for training"
        await self.evaluating.call(self._evaluation.leave_out, [item])
        await self._report_evaluations()
        self._finish([item.group_id])

    async def _report_evaluations(self) -> None:
        if self._evaluation is not None:
            complete: Iterator[tuple[Split, int, Result]] = self._evaluation.newly_complete()
            for split, version, result in await self.evaluating.call(lambda: list(complete)):
                self.evaluated.add((split, version))
                self._tracker.evaluated(split, version, result)
            self._changed.set()

    def _give_up(self, item: Item) -> None:
        """Go on without a prompt or a group, once that is on record."""
        evaluation = self._recipe.evaluation
        sizes = {
            "train": self._recipe.algorithm.prompts_per_round,
            "validation": evaluation.validation_prompts,
            "test": evaluation.test_prompts,
        }
        self._work.quarantine.add(item, sizes[item.purpose])
        self._tracker.quarantined(item)
        if item.purpose == "train":
            self._leave_out_of_training(item)
            self._finish([item.group_id])
        else:
            self._begin(self._leave_out_of_evaluation(item))

    def _leave_out_of_training(self, item: Item) -> None:
        """Its round goes on without it; a prompt that has brought down samplers is not sampled in later ones either."""
        last = self._recipe.algorithm.rounds if item.service == SAMPLER else item.round + 1
        for round_ in range(item.round, last):
            self._schedule.leave_out(round_, item.prompt_id, item.group_id)

    def _wanted(self, training: bool) -> list[str]:
        if training or self._evaluation is None:
            return self._work.training_scorers
        return self._evaluation.scorers

    def _store_of(self, training: bool) -> Store:
        if training or self._evaluation is None:
            return self._work.store
        return self._evaluation.store
