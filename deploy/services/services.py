"""The services of a run: pools of samplers and scorers, and the learner's ranks."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from brain_align.common.config.run import TimeoutsSection
from brain_align.common.errors import PipelineError
from brain_align.deploy.actors.actor import Actor, Handle
from brain_align.deploy.actors.pool import WAITS_SILENTLY, Pool
from brain_align.deploy.actors.replica import State
from brain_align.deploy.services.trial import Trial, raise_problems, try_scorers
from brain_align.learner.step_report import StepReport


class LearnerGroup:
    """The learner's ranks as one: every call goes to all of them, and rank 0 answers.

    All calls raise PipelineError if a rank was lost or failed (named, with its log), and UserError if a rank raised
    one. A lost rank ends the run: its state is that of the checkpoint, and a new start of the run resumes from there.
    `spawn` makes a new actor from a rank and its log file; `log_of` names the log file of an actor; `shortage` says
    what a rank asks for, and what there is.
    """

    state = State.WAITING
    trouble: str | None = None  # why it waits
    tell: Callable[[str], None] = staticmethod(logging.getLogger(__name__).warning)

    def __init__(
        self,
        ranks: int,
        spawn: Callable[[int, str], Handle],
        log_of: Callable[[str], Path],
        timeouts: TimeoutsSection,
        shortage: Callable[[], str] = lambda: "it is full",
    ) -> None:
        self.busy_seconds = 0.0  # in calls
        self._timeouts = timeouts
        self._shortage = shortage

        def actor(rank: int) -> Actor:
            name = f"learner-{rank}"
            return Actor(name, str(log_of(name)), lambda _name, log_path: spawn(rank, log_path))

        self._ranks = [actor(rank) for rank in range(ranks)]

    async def start(self) -> int:
        """Start all ranks; returns the step of the checkpoint that they resumed from (0: none)."""
        for rank in self._ranks:
            rank.create()
        timeout = self._timeouts.start
        await self._find_room(timeout)
        self.state = State.STARTING
        host, port = await self._ranks[0].call("address", timeout=timeout)
        step = cast(int, await self._call("start", host, port, timeout=timeout))
        self.state = State.READY
        return step

    async def train_step(self, step: int, batch: pa.RecordBatch) -> StepReport:
        """Train a step on TRAIN_BATCH rows; where these train nothing, it is still to be trained."""
        return cast(StepReport, await self._call("train_step", step, batch, timeout=self._timeouts.step))

    async def skip(self, step: int) -> None:
        """Count a step that is on record, although it trains nothing."""
        await self._call("skip", step, timeout=self._timeouts.step)

    async def save(self, step: int, *, keep: Sequence[int]) -> None:
        """Write the checkpoint of a step; older ones are deleted, except those of the steps to keep."""
        await self._call("save", step, keep, timeout=self._timeouts.step)

    async def publish(self, version: int, step: int) -> None:
        """Publish the policy as a version, unless that is published; `step` is the one that ends it."""
        await self._call("publish", version, step, timeout=self._timeouts.step)

    def kill(self) -> None:
        """End all ranks."""
        for rank in self._ranks:
            rank.kill()

    async def _find_room(self, timeout: float) -> None:
        """Wait until the cluster has room for all ranks at the same time."""
        began = time.monotonic()
        placed = {asyncio.ensure_future(rank.placed()): rank.name for rank in self._ranks}
        waiting = set(placed)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=min(WAITS_SILENTLY, timeout))
                for one in done:
                    one.result()
                if waiting and not done:
                    await self._wait_on(sorted(placed[one] for one in waiting), time.monotonic() - began, timeout)
        finally:
            for one in placed:
                one.cancel()
        self.trouble = None

    async def _wait_on(self, names: list[str], waited: float, timeout: float) -> None:
        """Say what is short, and for whom; raise a PipelineError when it has been short for too long."""
        ranks = ", ".join(names)
        shortage = await asyncio.to_thread(self._shortage)
        if waited >= timeout:
            raise PipelineError(
                f"{ranks} found no room in the cluster within {waited:.3g} s: {shortage}; add nodes, or lower "
                f"learner.ranks, cpus or gpus."
            )
        before, self.trouble = self.trouble, f"{ranks} waits for room in the cluster: {shortage}."
        if before is None:
            self.tell(self.trouble)

    async def _call(self, method: str, *args: Any, timeout: float) -> Any:
        began = time.monotonic()
        answers = await asyncio.gather(*(rank.call(method, *args, timeout=timeout) for rank in self._ranks))
        self.busy_seconds += time.monotonic() - began
        return answers[0]


@dataclass(frozen=True)
class Services:
    """The pools of samplers and scorers, which several runs may share, and the run's own learner."""

    samplers: Pool
    scorers: dict[str, Pool]
    learner: LearnerGroup

    async def start_pools(self, trial: pa.RecordBatch | None, timeout: float) -> dict[str, Trial]:
        """Start samplers and scorers, and try the scorers on `trial`; `timeout` is that of a call.

        A scorer that is of no use is reported at once, although samplers, which take longest, may still be starting.

        Raises:
            PipelineError, UserError: a pool does not come up, or a scorer gives no values.
        """
        tried, _ = await asyncio.gather(self._start_scorers(trial, timeout), self.samplers.start())
        return tried

    async def _start_scorers(self, trial: pa.RecordBatch | None, timeout: float) -> dict[str, Trial]:
        await asyncio.gather(*(pool.start() for pool in self.scorers.values()))
        tried = await try_scorers(self.scorers, trial, timeout)
        raise_problems(tried)
        return tried

    @property
    def pools(self) -> dict[str, Pool]:
        """All pools, by their names in `brain scale` and `brain status`."""
        return {"samplers": self.samplers, **{f"scorers.{name}": pool for name, pool in self.scorers.items()}}

    def busy_seconds(self) -> dict[str, float]:
        """Return for how long the actors of each stage have worked, summed over the actors."""
        return {
            "sampling": self.samplers.busy_seconds,
            "scoring": sum(pool.busy_seconds for pool in self.scorers.values()),
            "training": self.learner.busy_seconds,
        }

    def kill(self) -> None:
        """End all actors."""
        for pool in self.pools.values():
            pool.kill()
        self.learner.kill()
