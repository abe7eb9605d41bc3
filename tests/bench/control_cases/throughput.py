"""A thousand simulated samplers against the real conductor, pipeline, pools and store."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from brain_align.common.requests import SampleRequest
from brain_align.common.schemas import GROUPS, PRIOR, SCORES
from brain_align.deploy.actors.actor import Spawn
from brain_align.deploy.actors.pool import PoolSettings
from tests.stand_ins import LocalLearner, LocalSampler, LocalScorer, Simulation
from tests.unit.factories import groups, output, scores

SAMPLERS, LEASES_A_SAMPLER, LEASE_PROMPTS, ROUNDS = 1000, 2, 16, 5
PROMPTS_PER_ROUND = SAMPLERS * LEASE_PROMPTS  # two rounds are admitted at a time: a request for every slot
N, TOKENS = 8, 32
GROUP_SECONDS = 0.4
"""A group of a request: the samplers could give 5,000 groups/s.

A round is trained when its last request is sampled, 6.4 s after it was admitted, and only then is another admitted.
With requests for all slots five rounds take at least 19.2 s, so the benchmark cannot show more than 4,167 groups/s.
"""

ROW = groups("", outputs=[output(list(range(TOKENS)), [-1.0] * TOKENS, "word " * TOKENS) for _ in range(N)])


class EqualSleeps:
    """Sleeps of one length for many tasks, each from when it asks: one timer that wakes them in turn.

    A sampler's time passes in its own process: a thousand timers in this one would be billed to the control plane.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asleep: deque[tuple[float, asyncio.Future[None]]] = deque()  # with when it ends, the next one first

    async def sleep(self) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._asleep.append((loop.time() + self._seconds, woken))
        if len(self._asleep) == 1:
            loop.call_at(self._asleep[0][0], self._wake)
        await woken

    def _wake(self) -> None:
        loop = asyncio.get_running_loop()
        while self._asleep and self._asleep[0][0] <= loop.time():
            _, woken = self._asleep.popleft()
            if not woken.done():  # cancelled
                woken.set_result(None)
        if self._asleep:
            loop.call_at(self._asleep[0][0], self._wake)


class QuickSampler(LocalSampler):
    """Makes groups at next to no cost, so that the process's time is the control plane's."""

    def __init__(self, name: str, sleeps: EqualSleeps) -> None:
        super().__init__(name)
        self._sleeps = sleeps

    async def generate(self, request: SampleRequest) -> AsyncGenerator[pa.RecordBatch]:
        groups = rows_of(request)
        for place in range(len(request.prompts)):
            await self._sleeps.sleep()
            yield groups.slice(place, 1)


class QuickScorer(LocalScorer):
    """Answers at once, at next to no cost."""

    async def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([batch["group_id"], *_values(self.name, batch.num_rows)], schema=SCORES)


@cache
def _values(scorer: str, rows: int) -> list[pa.Array]:
    """All columns of SCORES but the first, with the same values in each row."""
    return scores(scorer, {str(row): [1.0] * N for row in range(rows)}).columns[1:]


def measure(root: Path) -> dict[str, Any]:
    algorithm = {
        "rounds": ROUNDS,
        "prompts_per_round": PROMPTS_PER_ROUND,
        "updates_per_round": PROMPTS_PER_ROUND // 100,
        "batch_prompts": 100,
        "max_staleness": 1,
    }
    sleeps = EqualSleeps(GROUP_SECONDS)
    scorers: dict[str, tuple[int, Spawn]] = {
        PRIOR: (4, lambda _name, _log: QuickScorer(PRIOR)),
        "reward": (4, lambda _name, _log: QuickScorer("reward")),
    }
    simulation = Simulation(
        root,
        algorithm,
        (SAMPLERS, lambda name, _log: QuickSampler(name, sleeps)),
        scorers,
        LocalLearner(),
        recipe={"sampler": {"lease_prompts": LEASE_PROMPTS}},
        samplers_settings=PoolSettings(start=60, slots=LEASES_A_SAMPLER, stall_timeout=300),
    )
    began, cpu = time.perf_counter(), time.process_time()
    asyncio.run(simulation.run())
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    trained = simulation.trained()
    assert len(trained) == len(set(trained)) == ROUNDS * PROMPTS_PER_ROUND
    pipeline = simulation.conductor.groups
    queue = pipeline.training.queue
    return {
        "simulated_samplers": SAMPLERS,
        "groups": len(trained),
        "control_plane_groups_per_second": len(trained) / wall,
        "leases_per_second": len(trained) / LEASE_PROMPTS / wall,
        "commits_per_second": queue.commits / wall,
        "groups_a_commit": 3 * len(trained) / queue.commits,  # groups, and two scorers' values
        "control_plane_cpu_share": cpu / wall,  # of one core
        "longest_queue": max(queue.longest, pipeline.scoring.longest_queue),
    }


def rows_of(request: SampleRequest) -> pa.RecordBatch:
    """The request's groups, with the same outputs each."""
    count = len(request.prompts)
    values = {
        "group_id": list(request.group_ids),
        "prompt_id": [prompt.prompt_id for prompt in request.prompts],
        "round": [request.round] * count,
        "proposal_version": [request.version] * count,
    }
    own = {name: pa.array(column, GROUPS.field(name).type) for name, column in values.items()}
    columns = [own.get(name, same) for name, same in _same_groups(count).items()]
    return pa.RecordBatch.from_arrays(columns, schema=GROUPS)


@cache
def _same_groups(rows: int) -> dict[str, pa.Array]:
    """The columns of GROUPS, with the same group in each row."""
    return {name: pa.concat_arrays([ROW[name]] * rows) for name in GROUPS.names}
