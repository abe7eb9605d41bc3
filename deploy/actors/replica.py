"""One replica of a pool: its actor, how many calls it has, and where in its life it is."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from enum import StrEnum
from typing import Any

from brain_align.common.errors import PipelineError
from brain_align.deploy.actors.actor import Actor, ActorLostError


class State(StrEnum):
    """Where in its life a replica is."""

    WAITING = "waiting for room in the cluster"
    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    RESTARTING = "lost, starts again soon"
    GONE = "given up"


class Replica:
    """An actor of a pool, the same replica after every restart.

    Attributes:
        state: see `State`.
        calls: that it is working on.
        losses: how often its actor was lost.
        starts_failed: how often in a row it did not come up.
        failures_in_a_row: how often in a row it was lost or did not come up, without an answer between.
        trouble: why its actor was last lost, or None.
        changed: it was lost, or is to leave.
        idle: it works on nothing.
    """

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.state = State.WAITING
        self.calls = 0
        self.losses = 0
        self.starts_failed = 0
        self.failures_in_a_row = 0
        self.trouble: str | None = None
        self.changed = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self._busy_since = 0.0

    @property
    def name(self) -> str:
        """Of the actor."""
        return self.actor.name

    def take(self, calls: int) -> None:
        """It gets so many more calls."""
        if self.calls == 0:
            self._busy_since = time.monotonic()
            self.idle.clear()
        self.calls += calls

    def give_back(self, calls: int) -> float:
        """So many of its calls are over; returns for how many seconds it was busy, once all are."""
        self.calls -= calls
        if self.calls:
            return 0.0
        self.idle.set()
        return time.monotonic() - self._busy_since

    def lost(self, error: ActorLostError) -> ActorLostError:
        """Its actor is gone; told by everyone who notices, of whom the first knows why: returns what that one said."""
        if self.state is State.READY:
            self.state = State.RESTARTING
            self.losses += 1
            self.failures_in_a_row += 1
            self.trouble = str(error)
            self.changed.set()
        if self.state is State.RESTARTING and self.trouble is not None:
            return ActorLostError(self.trouble, sent_away=error.sent_away)
        return error


class Slot:
    """The right to call a replica, until it is released."""

    def __init__(self, replica: Replica, calls: int, release: Callable[[Replica, int], None]) -> None:
        self.replica = replica
        self._calls = calls
        self._release = release

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        """See `Actor.call`."""
        try:
            answer = await self.replica.actor.call(method, *args, timeout=timeout)
        except ActorLostError as error:
            raise self.replica.lost(error) from error
        self.replica.failures_in_a_row = 0
        return answer

    async def stream(self, method: str, *args: Any, timeout: float) -> AsyncGenerator[Any]:
        """See `Actor.stream`; a method that raises has broken its actor, which is ended."""
        try:
            async with aclosing(self.replica.actor.stream(method, *args, timeout=timeout)) as items:
                async for item in items:
                    self.replica.failures_in_a_row = 0
                    yield item
        except ActorLostError as error:
            raise self.replica.lost(error) from error
        except PipelineError as error:
            self.replica.actor.kill()
            raise self.replica.lost(ActorLostError(str(error))) from error

    def release(self) -> None:
        """Let others call the replica."""
        self._release(self.replica, self._calls)
