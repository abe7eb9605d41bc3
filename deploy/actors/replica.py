"""One replica of a pool: its actor, its calls and its state."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from brain_align.common.errors import PipelineError
from brain_align.deploy.actors.actor import Actor, ActorLostError


class State(StrEnum):
    """The state of a replica."""

    WAITING = "waiting for room in the cluster"
    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    RESTARTING = "lost, starts again soon"
    GONE = "given up"


class Replica:
    """An actor of a pool; it stays the same replica after every restart."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.state = State.WAITING
        self.calls = 0  # that it is working on
        self.losses = 0  # how often its actor was lost
        self.starts_failed = 0  # how often in a row it did not come up
        self.failures_in_a_row = 0  # how often in a row it was lost or did not come up, without an answer between them
        self.trouble: str | None = None  # why its actor was last lost
        self.changed = asyncio.Event()  # it was lost, or is to leave
        self.idle = asyncio.Event()  # it works on nothing
        self.idle.set()
        self._busy_since = 0.0

    @property
    def name(self) -> str:
        """The actor's name."""
        return self.actor.name

    def take(self, calls: int) -> None:
        """Count calls that it is given."""
        if self.calls == 0:
            self._busy_since = time.monotonic()
            self.idle.clear()
        self.calls += calls

    def give_back(self, calls: int) -> float:
        """Count calls that are over; returns how many seconds it was busy, once all are over, else 0."""
        self.calls -= calls
        if self.calls:
            return 0.0
        self.idle.set()
        return time.monotonic() - self._busy_since

    def lost(self, error: ActorLostError) -> ActorLostError:
        """Note that its actor is gone; all callers notice, and the first knows why: returns the first error."""
        if self.state is State.READY:
            self.state = State.RESTARTING
            self.losses += 1
            self.failures_in_a_row += 1
            self.trouble = str(error)
            self.changed.set()
        if self.state is State.RESTARTING and self.trouble is not None:
            return ActorLostError(self.trouble, sent_away=error.sent_away)
        return error

    async def check_heartbeat(self, stall_timeout: float) -> None:
        """Count it as lost if it gives no answer, or makes no progress, for `stall_timeout` seconds."""
        try:
            heartbeat = await self.actor.call("heartbeat", timeout=stall_timeout)
        except ActorLostError as error:
            self.lost(error)
            return
        if heartbeat.running + heartbeat.waiting and heartbeat.idle_seconds > stall_timeout:
            self.actor.kill()
            self.lost(
                ActorLostError(
                    f"{self.name} has made no progress for {heartbeat.idle_seconds:.0f} s, longer than "
                    f"timeouts.silence={stall_timeout:g}, with {heartbeat.running} outputs unfinished."
                )
            )


@dataclass(frozen=True)
class Slot:
    """The right to call a replica, until it is released."""

    replica: Replica
    _calls: int
    _release: Callable[[Replica, int], None]

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        """Call the replica's actor, see `Actor.call`."""
        try:
            answer = await self.replica.actor.call(method, *args, timeout=timeout)
        except ActorLostError as error:
            raise self.replica.lost(error) from error
        self.replica.failures_in_a_row = 0
        return answer

    async def stream(self, method: str, *args: Any, timeout: float) -> AsyncGenerator[Any]:
        """Call a generator, see `Actor.stream`; a method that raises has broken its actor, which is ended."""
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
