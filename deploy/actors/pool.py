"""An elastic pool of equal actors, which are started, watched, restarted, added and removed while others call them."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_align.common.errors import PipelineError, ScorerAwayError, UserError
from brain_align.deploy.actors.actor import Actor, ActorLostError, Spawn
from brain_align.deploy.actors.free_slots import FreeSlots
from brain_align.deploy.actors.replica import Replica, Slot, State

MAX_ATTEMPTS = 3  # attempts at a call, each on a live replica, and at a start in a row, before it fails
# The run ends when each replica was lost so often in a row without an answer: prompts cannot be the cause then.
MAX_LOSSES = 15
_LONGEST_BACKOFF = 60.0  # seconds
WAITS_SILENTLY = 10.0  # seconds, for room in the cluster, before it says so
_LOG = logging.getLogger(__name__)


class _NoRoomError(PipelineError):
    """The cluster has no room for any replica."""


@dataclass(frozen=True)
class PoolSettings:
    """The settings of a pool; times in seconds."""

    start: float  # how long a replica's start may take, once the cluster has room for it
    slots: int = 1  # how many calls a replica takes at once
    # How long a replica may give no answer, or make no progress, before it counts as hung; None: it is not asked, since
    # it cannot answer while it works.
    stall_timeout: float | None = None
    backoff: float = 1.0  # the wait before a lost replica's first restart; it doubles with each further one in a row
    outage: float = 600.0  # how long none may come up because what they need is away


class Pool:
    """The replicas of one service. A pool knows nothing of runs, so that several runs may call it.

    A lost replica is restarted with back-off. Its calls raise `ActorLostError`; the caller repeats them.
    """

    def __init__(
        self,
        name: str,
        replicas: int,
        spawn: Spawn,
        log_of: Callable[[str], Path],
        settings: PoolSettings,
        shortage: Callable[[], str] = lambda: "it is full",
    ) -> None:
        """Store the arguments; nothing is started. `shortage` says what an actor asks for, and what there is."""
        self.name = name
        self.tell: Callable[[str], None] = _LOG.warning  # what has become of replicas
        self.busy_seconds = 0.0
        self.identity: Any = None  # the answer to `ready` of the replica that came up last
        self.replicas: dict[str, Replica] = {}
        self._spawn = spawn
        self._log_of = log_of
        self._settings = settings
        self._shortage = shortage
        self._has_told_of_shortage = False
        self._initial = self._wanted = replicas
        self._named = 0  # replicas so far
        self._free = FreeSlots(settings.slots)
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._first_ready = asyncio.Event()
        self._last_ready = 0.0  # when a replica last was
        self._failure: Exception | None = None

    async def start(self) -> None:
        """Start all replicas side by side and wait for the first one; the others join when they are ready.

        Raises:
            PipelineError: none came up, or the cluster has no room for any.
            UserError: a replica raised it.
        """
        if not self._initial:
            return
        if not self._lives:
            self._last_ready = time.monotonic()
            self.scale(self._initial)
        await self._first_ready.wait()
        self.raise_failure()

    @property
    def elastic(self) -> bool:
        """Return whether there are any replicas, so that their number can be changed."""
        return self._initial > 0

    @property
    def target(self) -> int:
        """The number of replicas that there are, or will be soon."""
        return len(self._staying())

    @property
    def ready(self) -> int:
        """The number of replicas that can be called."""
        return self.count(State.READY)

    def count(self, state: State) -> int:
        """Return the number of replicas in a state."""
        return sum(replica.state is state for replica in self.replicas.values())

    def scale(self, count: int) -> None:
        """Add or remove replicas; those that are not ready leave first, then the least busy, after their calls."""
        self._wanted = count
        staying = self._staying()
        for _ in range(count - len(staying)):
            self._add()
        staying.sort(key=lambda replica: (replica.state is State.READY, replica.calls))
        for replica in staying[: max(len(staying) - count, 0)]:
            self._dismiss(replica)

    async def acquire(self, *, alone: bool = False) -> Slot:
        """Wait for a ready replica with a free slot; `alone`: for one that works on nothing else meanwhile.

        Raises:
            PipelineError, UserError: the pool has failed for good.
        """
        self.raise_failure()
        grant = self._free.ask(alone=alone)
        calls = self._free.calls(alone=alone)
        try:
            replica = await grant
        except asyncio.CancelledError:
            if grant.done() and not grant.cancelled() and grant.exception() is None:
                self._release(grant.result(), calls)
            raise
        return Slot(replica, calls, self._release)

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Acquire a slot, and release it when the block ends."""
        slot = await self.acquire()
        try:
            yield slot
        finally:
            slot.release()

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        """Call any replica, and repeat the call on another one if that is lost.

        Raises:
            PipelineError: the method raised one, or the call lost its replica `MAX_ATTEMPTS` times.
            UserError: the method raised one.
        """
        lost: ActorLostError | None = None
        for _attempt in range(MAX_ATTEMPTS):
            async with self.slot() as slot:
                try:
                    return await slot.call(method, *args, timeout=timeout)
                except ActorLostError as error:
                    lost = error
        raise PipelineError(f"The same call was tried {MAX_ATTEMPTS} times: {lost}") from lost

    def raise_failure(self) -> None:
        """Raise the PipelineError or UserError that has made the pool fail for good, if one has."""
        if self._failure is not None:
            raise self._failure

    def kill(self) -> None:
        """End all replicas, for good."""
        for life in self._lives.values():
            life.cancel()
        for replica in self.replicas.values():
            replica.actor.send_away()

    def _staying(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.state not in (State.LEAVING, State.GONE)]

    def _add(self) -> None:
        label = f"{self.name}-{self._named}"
        self._named += 1
        replica = Replica(Actor(label, str(self._log_of(label)), self._spawn))
        self.replicas[label] = replica
        self._lives[label] = asyncio.create_task(self._live(replica), name=label)

    def _dismiss(self, replica: Replica) -> None:
        was_ready = replica.state is State.READY
        replica.state = State.LEAVING
        self._free.withdraw(replica)
        replica.changed.set()
        if not was_ready:  # there is nothing that it might finish
            self._lives[replica.name].cancel()

    def _release(self, replica: Replica, calls: int) -> None:
        self.busy_seconds += replica.give_back(calls)
        if replica.state is State.READY:
            self._free.offer(replica)

    async def _live(self, replica: Replica) -> None:
        """Start a replica, watch it and restart it, until it leaves or the pool fails."""
        try:
            while replica.state is not State.LEAVING:
                if await self._bring_up(replica):
                    await self._watch(replica, replica.changed)
                    self._last_ready = time.monotonic()
                    self._free.withdraw(replica)
                if replica.state is State.RESTARTING:
                    self.tell(f"{replica.trouble} It is started again.")
                    self._check_not_all_fail(replica)
                    backoff = self._settings.backoff * 2.0 ** (replica.failures_in_a_row - 1)
                    await asyncio.sleep(min(backoff, _LONGEST_BACKOFF))
                elif replica.state is State.GONE:
                    self.tell(f"{replica.trouble} It is given up for now, after {MAX_ATTEMPTS} starts.")
                    await asyncio.sleep(_LONGEST_BACKOFF)
                    if len(self._staying()) >= self._wanted:  # another has taken its place
                        replica.state = State.LEAVING
            await self._watch(replica, replica.idle)
        except (PipelineError, UserError) as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - nobody else would hear of it, and callers wait
            self._fail(PipelineError(f"{replica.name} could not be looked after: {type(error).__name__}: {error}"))
        finally:
            replica.actor.send_away()
            if replica.state is State.LEAVING:
                del self.replicas[replica.name], self._lives[replica.name]

    async def _bring_up(self, replica: Replica) -> bool:
        """Start a replica; returns whether it has come up."""
        await replica.idle.wait()  # its calls have noticed that its last actor is gone
        replica.changed.clear()
        replica.state = State.WAITING
        try:
            replica.actor.create()
            await self._find_room(replica)
            replica.state = State.STARTING
            self.identity = await replica.actor.call("ready", timeout=self._settings.start)
        except _NoRoomError:
            raise
        except ScorerAwayError as error:
            if not self._first_ready.is_set():  # no outage, most likely, but a wrong address
                raise UserError(str(error)) from error
            self._did_not_come_up(replica, error)
            return False
        except PipelineError as error:
            self._did_not_come_up(replica, error)
            return False
        replica.state = State.READY
        replica.starts_failed = 0
        self._first_ready.set()
        self._free.offer(replica)
        return True

    async def _find_room(self, replica: Replica) -> None:
        """Wait until the cluster has room for a replica: without a limit while others work or start."""
        placed = asyncio.ensure_future(replica.actor.placed())
        trouble = replica.trouble
        try:
            while not (await asyncio.wait([placed], timeout=min(WAITS_SILENTLY, self._settings.start)))[0]:
                shortage = await asyncio.to_thread(self._shortage)
                replica.trouble = f"{replica.name} waits for room in the cluster: {shortage}."
                if not self._has_told_of_shortage:
                    self._has_told_of_shortage = True
                    self.tell(replica.trouble)
                nobody_for = 0.0 if self.ready else time.monotonic() - self._last_ready
                if nobody_for >= self._settings.start and self.count(State.WAITING) == len(self._staying()):
                    raise _NoRoomError(
                        f"No {self.name} found room in the cluster within {nobody_for:.3g} s: {shortage}; add nodes, "
                        f"or lower the cpus or gpus of the services."
                    )
            await placed
            replica.trouble, self._has_told_of_shortage = trouble, False
        finally:
            placed.cancel()

    def _did_not_come_up(self, replica: Replica, error: PipelineError) -> None:
        replica.actor.kill()
        replica.failures_in_a_row += 1
        replica.trouble = str(error)
        replica.state = State.RESTARTING
        if isinstance(error, ScorerAwayError):  # it comes up once its service is back, unless that takes too long
            replica.failures_in_a_row = min(replica.failures_in_a_row, MAX_LOSSES - 1)
            outage = self._settings.outage
            if not self.ready and time.monotonic() - self._last_ready > outage:
                raise PipelineError(f"No {self.name} has come up for {outage:g} s (timeouts.outage): {error}")
            return
        replica.starts_failed += 1
        if replica.starts_failed >= MAX_ATTEMPTS:  # more often where it was tried again after it had been given up
            replica.state = State.GONE
            if not self._staying():
                raise PipelineError(
                    f"No {self.name} is left; the last was given up after {MAX_ATTEMPTS} starts: {error}"
                )

    async def _watch(self, replica: Replica, end: asyncio.Event) -> None:
        """Wait for an event of a replica, and ask now and then whether the replica makes progress."""
        stall_timeout = self._settings.stall_timeout
        while not end.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if stall_timeout is None else stall_timeout / 4):
                    await end.wait()
            if stall_timeout is not None and not end.is_set():
                await replica.check_heartbeat(stall_timeout)

    def _check_not_all_fail(self, replica: Replica) -> None:
        """End the pool if each replica keeps failing; those that never had room do not count."""
        tried = [one for one in self._staying() if one.failures_in_a_row or one.state is not State.WAITING]
        if all(one.failures_in_a_row >= MAX_LOSSES for one in tried):
            raise PipelineError(
                f"Every {self.name} was lost {MAX_LOSSES} times in a row without an answer between them; the last: "
                f"{replica.trouble}"
            )

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._first_ready.set()
        self._free.refuse_all(error)
