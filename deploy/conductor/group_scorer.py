"""Scorers at work outside of a run, for whoever brings groups and waits for their values."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import PipelineError, first_failure
from brain_align.common.schemas import SCORES, batch_from_rows
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.conductor.scoring import Begin, Events, Samples, Scoring
from brain_align.deploy.schedule.quarantine import most_left_out


class GroupScorer(Events):
    """Gives groups to one scorer, as a run does, and hands their values back.

    A group that keeps failing has null values and the error. Where there are too many of those for the groups to be the
    cause, it ends with the error.

    Args:
        name: of the scorer.
        pool: its replicas, started.
        rows: groups a call.
        timeout: seconds for one call.
        begin: starts a task; what a task raises ends those that wait.

    Attributes:
        failed_groups: ids of the groups that have no values because they keep failing.
    """

    def __init__(self, name: str, pool: Pool, rows: int, timeout: float, begin: Begin) -> None:
        self.failed_groups: set[str] = set()
        self._name = name
        self._pool = pool
        self._finished = 0
        self._waiting: dict[str, asyncio.Future[pa.RecordBatch]] = {}  # one row, by the group's id
        self._scoring = Scoring({name: pool}, {name: rows}, timeout, self)
        self._scoring.start(begin, self, self)

    async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        """SCORES rows for GROUPS rows, in their order.

        Args:
            groups: at least one; of their ids no other call under way has any.
        """
        loop = asyncio.get_running_loop()
        rows = {group: loop.create_future() for group in groups["group_id"].to_pylist()}
        self._waiting |= rows
        self._scoring.put(Samples(training=True, groups=groups), [self._name])
        return pa.concat_batches(await asyncio.gather(*rows.values()))

    async def append_scores(self, batch: pa.RecordBatch) -> None:
        """Hand rows to those that wait for them."""
        for place, group in enumerate(batch["group_id"].to_pylist()):
            self._hand_back(group, batch.slice(place, 1))

    def failed(self, scorer: str, samples: Samples, error: PipelineError) -> None:
        """See `Events`."""
        (row,) = samples.groups.select(["group_id", "outputs"]).to_pylist()
        self.failed_groups.add(row["group_id"])
        so_far = self._finished + 1
        if len(self.failed_groups) > most_left_out(so_far):
            raise PipelineError(
                f"{len(self.failed_groups)} of the first {so_far} groups failed in the scorer {scorer!r}, so "
                f"that the cause is hardly the groups; the last error: {error}"
            )
        nothing = {
            "group_id": row["group_id"],
            "scorer": scorer,
            "scorer_digest": self._pool.identity["digest"],
            "values": [None] * len(row["outputs"]),
            "gold_value": None,
            "error": str(error),
            "scored_at": time.time(),
        }
        self._hand_back(row["group_id"], batch_from_rows(SCORES, [nothing]))

    def _hand_back(self, group: str, row: pa.RecordBatch) -> None:
        self._finished += 1
        if not (waiting := self._waiting.pop(group)).done():  # somebody may have stopped waiting
            waiting.set_result(row)


@asynccontextmanager
async def scorers_at_work(pools: Mapping[str, Pool], recipe: Recipe) -> AsyncIterator[dict[str, GroupScorer]]:
    """Scorers that are ready to score, for as long as the block takes.

    Args:
        pools: of the scorers, by name, not yet started.
        recipe: says how many groups a call has, and how long it may take.

    Raises:
        PipelineError, UserError: a scorer failed for good, before the block or within it; or what the block raised.
    """
    await asyncio.gather(*(pool.start() for pool in pools.values()))
    under_way: set[asyncio.Task[None]] = set()
    try:
        async with asyncio.TaskGroup() as tasks:

            def begin(work: Coroutine[Any, Any, None]) -> None:
                task = tasks.create_task(work)
                under_way.add(task)
                task.add_done_callback(under_way.discard)

            timeout = recipe.timeouts.lease
            yield {
                name: GroupScorer(name, pool, recipe.groups_per_call(name), timeout, begin)
                for name, pool in pools.items()
            }
            for task in under_way:
                task.cancel()
    except ExceptionGroup as failures:
        raise first_failure(failures) from failures
