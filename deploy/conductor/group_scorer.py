"""Scorers outside of a run: groups in, values back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pyarrow as pa
from typing_extensions import override

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run import TimeoutsSection
from brain_align.common.errors import PipelineError
from brain_align.common.schemas import SCORES, batch_from_rows
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.conductor.background import Begin, background_tasks
from brain_align.deploy.conductor.scoring import Scoring
from brain_align.deploy.conductor.waiting_groups import Lane, Samples
from brain_align.deploy.schedule.quarantine import most_left_out
from brain_align.deploy.services.trial import raise_problems, try_scorers


class GroupScorer(Lane):
    """Gives groups to one scorer, as a run does, and returns their values.

    A group that keeps failing gets null values and the error. If there are too many such groups for them to be the
    cause, scoring ends with the error, and so it does if the scorer is away for too long. The pool is started; an error
    in a task also ends the callers that wait. `say` is told when the scorer is away, and when it is back.
    """

    def __init__(
        self, name: str, pool: Pool, rows: int, timeouts: TimeoutsSection, begin: Begin, say: Callable[[str], object]
    ) -> None:
        self.failed_groups: set[str] = set()  # ids of those without values, because they keep failing
        self._pool = pool
        self._finished = 0
        self._waiting: dict[str, asyncio.Future[pa.RecordBatch]] = {}  # one row, by the group's id
        self.scorers = [name]
        self.scoring = Scoring({name: pool}, {name: rows}, [self], timeouts, say)
        self.scoring.start(begin)

    async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        """Return SCORES rows for one or more GROUPS rows, in their order; no other call in progress may have any."""
        loop = asyncio.get_running_loop()
        rows = {group: loop.create_future() for group in groups["group_id"].to_pylist()}
        self._waiting |= rows
        self.scoring.put(Samples(self, groups))
        return pa.concat_batches(await asyncio.gather(*rows.values()))

    @override
    async def append_scores(self, scorer: str, samples: Samples, scores: pa.RecordBatch) -> None:
        """Return rows to the callers that wait for them."""
        for place, group in enumerate(scores["group_id"].to_pylist()):
            self._hand_back(group, scores.slice(place, 1))

    @override
    def complete(self, samples: Samples) -> None: ...

    @override
    def failed(self, scorer: str, sample: Samples, error: PipelineError) -> None:
        (row,) = sample.groups.select(["group_id", "outputs"]).to_pylist()
        self.failed_groups.add(row["group_id"])
        so_far = self._finished + 1
        if len(self.failed_groups) > most_left_out(so_far):
            raise PipelineError(
                f"{len(self.failed_groups)} of the first {so_far} groups failed in the scorer {scorer!r}, so "
                f"the cause is hardly the groups; the last error: {error}"
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
        if not (waiting := self._waiting.pop(group)).done():  # it may have been cancelled
            waiting.set_result(row)


@asynccontextmanager
async def scorers_at_work(
    pools: Mapping[str, Pool], recipe: Recipe, say: Callable[[str], object], trial: pa.RecordBatch | None = None
) -> AsyncIterator[dict[str, GroupScorer]]:
    """Yield scorers that are ready to score, until the block ends.

    The pools, by scorer, are not yet started; the recipe sets the groups per call and the time limits. `say` shows a
    sentence to the user. Every scorer must give values to one of the `trial` groups at least.

    Raises:
        PipelineError, UserError: a scorer failed for good, before the block or within it; or the block's own error.
    """
    await asyncio.gather(*(pool.start() for pool in pools.values()))
    tried = await try_scorers(pools, trial, recipe.timeouts.lease)
    raise_problems(tried)
    async with background_tasks() as begin:
        scorers = {
            name: GroupScorer(name, pool, recipe.groups_per_call(name), recipe.timeouts, begin, say)
            for name, pool in pools.items()
        }
        for scorer in scorers.values():
            scorer.scoring.tried(tried)
        yield scorers
