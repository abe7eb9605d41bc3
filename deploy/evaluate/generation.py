"""Samples and scores what an evaluation lacks, and stores it as it comes.

    requests ─► samplers ─► store ─► scorers ─► store

Whatever is in the store is not sampled or scored again: a start that was killed is continued by the next.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import PipelineError
from brain_align.common.requests import SampleRequest
from brain_align.common.store.commit_queue import CommitQueue
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.actors.replica import Slot
from brain_align.deploy.conductor.group_scorer import GroupScorer
from brain_align.deploy.conductor.sampling import Sampling
from brain_align.deploy.evaluate.plan import rows_of
from brain_align.deploy.evaluate.settings import PROMPTS_PER_REQUEST
from brain_align.deploy.schedule.quarantine import Item, most_left_out

_AHEAD = 2
"""Requests beyond one for each sampler that may be sampled and not yet scored."""


@dataclass
class Generation:
    """One start of an evaluation, while its scorers are at work.

    Raises:
        PipelineError, UserError: a service failed for good, or for too many prompts.
    """

    recipe: Recipe
    queue: CommitQueue
    scorers: Mapping[str, GroupScorer]
    wanted: Mapping[str, Sequence[str]]  # by group, the scorers whose values it gets
    advance: Callable[[int], object]  # counts outputs that are complete
    given_up: dict[str, str] = field(default_factory=dict)  # by group, why it has no output
    _sampled: dict[str, pa.RecordBatch] = field(default_factory=dict)  # by request, what is not scored yet
    _failed: list[pa.RecordBatch] = field(default_factory=list)  # null values of groups that keep failing

    async def sample(self, pool: Pool, requests: Sequence[SampleRequest]) -> None:
        """Sample requests and score their outputs; starts the samplers if they are not."""
        await pool.start()
        timeout = self.recipe.timeouts.lease
        sampling = Sampling(pool, whole=True, timeout=timeout, commit=self._commit, give_up=self._give_up)
        room = asyncio.Semaphore(pool.target + _AHEAD)
        async with asyncio.TaskGroup() as tasks:
            for request in requests:
                await room.acquire()
                slot = await pool.acquire()
                tasks.create_task(self._sample_and_score(sampling, request, slot, room))

    async def score_stored(self, scores: Mapping[str, list[str]]) -> None:
        """Score stored groups that lack values, by scorer."""
        counted: set[str] = set()
        for name, ids in scores.items():
            batches = self.queue.store.batches(group_ids=ids)
            while (batch := await self.queue.call(next, batches, None)) is not None:
                for start in range(0, batch.num_rows, PROMPTS_PER_REQUEST):
                    part = batch.slice(start, PROMPTS_PER_REQUEST)
                    await self._score_by(name, part)
                    new = set(part["group_id"].to_pylist()) - counted
                    counted |= new
                    self.advance(len(new))

    async def end(self) -> None:
        """Store null values for groups that keep failing: last, when it is known that the scorers do not."""
        for scores in self._failed:
            await self.queue.append_scores(scores)

    async def _sample_and_score(
        self, sampling: Sampling, request: SampleRequest, slot: Slot, room: asyncio.Semaphore
    ) -> None:
        await sampling.sample(request, slot)
        groups = self._sampled.pop(request.lease_id, None)
        if groups is not None:
            names = {name for group in request.group_ids for name in self.wanted[group]}
            await asyncio.gather(*(self._score_by(name, self._wanting(groups, name)) for name in sorted(names)))
        self.advance(len(request.prompts))
        room.release()

    def _wanting(self, groups: pa.RecordBatch, name: str) -> pa.RecordBatch:
        return rows_of(groups, {group for group in groups["group_id"].to_pylist() if name in self.wanted[group]})

    async def _score_by(self, name: str, groups: pa.RecordBatch) -> None:
        scorer = self.scorers[name]
        scores = await scorer.score(groups)
        if scorer.failed_groups:
            failed = pc.is_in(scores["group_id"], value_set=pa.array(list(scorer.failed_groups), pa.string()))
            self._failed.append(scores.filter(failed))
            scores = scores.filter(pc.invert(failed))
        if scores.num_rows:
            await self.queue.append_scores(scores)

    async def _commit(self, request: SampleRequest, groups: pa.RecordBatch) -> None:
        await self.queue.append_groups(groups)
        self._sampled[request.lease_id] = groups

    def _give_up(self, item: Item) -> None:
        self.given_up[item.group_id] = item.error
        if len(self.given_up) > most_left_out(len(self.wanted)):
            raise PipelineError(
                f"{len(self.given_up)} of {len(self.wanted)} prompts brought samplers down, so the cause is hardly the "
                f"prompts; the last error: {item.error}"
            )
