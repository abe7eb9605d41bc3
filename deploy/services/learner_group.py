"""The learner's ranks, as one."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from brain_align.deploy.actors.actor import Actor, Handle, Spawn
from brain_align.deploy.run.directory import RunDirectory


class LearnerGroup:
    """The learner's ranks: every call goes to all of them, and rank 0 answers.

    A lost rank ends the run: its state is the checkpoint's, and running again resumes from there.
    """

    def __init__(self, ranks: int, spawn: Callable[[int, str], Handle], directory: RunDirectory) -> None:
        self.busy_seconds = 0.0
        labels = [f"learner-{rank}" for rank in range(ranks)]
        self._ranks = [
            Actor(label, str(directory.log(label)), _spawn_rank(spawn, rank)) for rank, label in enumerate(labels)
        ]

    async def start(self, timeout: float) -> int:
        """Start all ranks; returns the step of the checkpoint that they resumed from (0: none)."""
        for rank in self._ranks:
            rank.create()
        host, port = await self._ranks[0].call("address", timeout=timeout)
        return int(await self.call("start", host, port, timeout=timeout))

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        """Call the same method on all ranks; returns rank 0's answer.

        Raises:
            PipelineError: a rank was lost or failed (named, with its log).
            UserError: a rank raised one.
        """
        began = time.monotonic()
        answers = await asyncio.gather(*(rank.call(method, *args, timeout=timeout) for rank in self._ranks))
        self.busy_seconds += time.monotonic() - began
        return answers[0]

    def kill(self) -> None:
        """End all ranks."""
        for rank in self._ranks:
            rank.kill()


def _spawn_rank(spawn: Callable[[int, str], Handle], rank: int) -> Spawn:
    return lambda _name, log_path: spawn(rank, log_path)
