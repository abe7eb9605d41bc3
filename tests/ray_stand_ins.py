"""Samplers and scorers in processes of their own, under Ray, that sleep instead of computing, and can be killed."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pyarrow as pa

from brain_align.common.errors import PipelineError
from brain_align.common.requests import SampleRequest
from brain_align.deploy.actors.actor import Handle, Spawn
from brain_align.deploy.actors.ray_handle import RayHandle
from brain_align.sampler.reports import Heartbeat
from tests.stand_ins import made_up
from tests.unit.factories import scores

POISON, HANG = "poison", "hang"
"""What a prompt may do to its sampler: kill it, or make it wait for ever."""


HURRY = "hurry"
"""A file of this name has samplers sleep no more."""


class SleepingSampler:
    """Takes `seconds` a group; leaves a file NAME@PID."""

    def __init__(self, name: str, pids: str, seconds: float, trouble: dict[str, str]) -> None:
        self._name, self._seconds, self._trouble = name, seconds, trouble
        self._running = 0
        self._last = 0.0
        self._pids = Path(pids)

    async def ready(self) -> str:
        self._last = asyncio.get_running_loop().time()
        (self._pids / f"{self._name}@{os.getpid()}").touch()
        return self._name

    async def generate(self, request: SampleRequest) -> AsyncGenerator[pa.RecordBatch]:
        self._running += 1
        try:
            for group_id, prompt in zip(request.group_ids, request.prompts, strict=True):
                await self._sample(self._trouble.get(prompt.prompt_id))
                self._last = asyncio.get_running_loop().time()
                yield made_up(request, group_id, prompt, self._name)
        finally:
            self._running -= 1

    async def _sample(self, trouble: str | None) -> None:
        await asyncio.sleep(0 if (self._pids / HURRY).exists() else self._seconds)
        if trouble == POISON:
            os.kill(os.getpid(), 9)
        if trouble == HANG:
            await asyncio.sleep(3600)

    async def heartbeat(self) -> Heartbeat:
        return Heartbeat(self._running, 0, 0, 0, asyncio.get_running_loop().time() - self._last)


class SleepingScorer:
    """Takes `seconds` a call, and fails where a group's prompt is faulty."""

    def __init__(self, name: str, pids: str, seconds: float, faulty: str) -> None:
        self._name, self._seconds, self._faulty = name, seconds, faulty
        self._pids = Path(pids)

    async def ready(self) -> str:
        (self._pids / f"{self._name}@{os.getpid()}").touch()
        return self._name

    async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        await asyncio.sleep(self._seconds)
        if self._faulty in groups["prompt_id"].to_pylist():
            raise PipelineError("cannot score this")
        return scores(self._name, {name: [1.0, 2.0] for name in groups["group_id"].to_pylist()})


def spawning(actor: type, *arguments: Any, name: str | None = None, cpus: float = 0.01) -> Spawn:
    """Makes actors of a class in this module; `name`: in place of their own."""

    def spawn(own: str, _log: str) -> Handle:
        options = {"num_cpus": cpus, "max_concurrency": 8, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
        return RayHandle.spawn(actor, options, name or own, *arguments)

    return spawn
