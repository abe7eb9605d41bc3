"""Actors in this process, for what is tested without Ray: they do what a test tells them, and can be killed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pyarrow as pa

from common.errors import PipelineError, UserError
from common.leases import Lease, Prompt
from common.schemas import GROUPS, batch_from_rows
from deploy.actor import CallFailedError, LostError
from sampler.reports import Pulse
from tests.unit.factories import group, scores


class LocalActor:
    """A `Handle` whose methods are its own; what it is doing when it is killed raises."""

    def __init__(self) -> None:
        self._dead = asyncio.Event()

    async def placed(self) -> None: ...

    async def ready(self) -> None: ...

    async def call(self, method: str, *args: Any) -> Any:
        self._check()
        try:
            return await getattr(self, method)(*args)
        except (UserError, PipelineError) as error:
            raise CallFailedError(error) from error

    async def stream(self, method: str, *args: Any) -> AsyncIterator[Any]:
        self._check()
        try:
            async for item in getattr(self, method)(*args):
                yield item
        except (UserError, PipelineError) as error:
            raise CallFailedError(error) from error

    def kill(self) -> None:
        self._dead.set()

    async def work(self, seconds: float) -> None:
        """Take so long, unless it is killed meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._dead.wait()
        self._check()

    def _check(self) -> None:
        if self._dead.is_set():
            raise LostError("killed")


class LocalSampler(LocalActor):
    """Makes up a group for each prompt, one after the other, `seconds` each."""

    def __init__(self, name: str = "sampler", seconds: float = 0.0) -> None:
        super().__init__()
        self.name, self.seconds = name, seconds

    async def generate(self, lease: Lease) -> AsyncIterator[pa.RecordBatch]:
        for group_id, prompt in zip(lease.group_ids, lease.prompts, strict=True):
            await self.sample(prompt)
            yield made_up(lease, group_id, prompt, self.name)

    async def sample(self, prompt: Prompt) -> None:
        """Where a test puts trouble."""
        await self.work(self.seconds)

    async def pulse(self) -> Pulse:
        return Pulse(0, 0, 0, 0, 0.0)


class LocalScorer(LocalActor):
    """Gives every output of a group its place, `seconds` a call."""

    def __init__(self, name: str, seconds: float = 0.0) -> None:
        super().__init__()
        self.name, self.seconds = name, seconds

    async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        await self.work(self.seconds)
        return scores(self.name, {name: [1.0, 2.0] for name in groups["group_id"].to_pylist()})


def made_up(lease: Lease, group_id: str, prompt: Prompt, sampler: str) -> pa.RecordBatch:
    row = group(
        group_id,
        prompt_id=prompt.prompt_id,
        round=lease.round,
        proposal_version=lease.version,
        lease_id=lease.lease_id,
        seed=lease.seed,
        sampler_id=sampler,
    )
    return batch_from_rows(GROUPS, [row])
