"""Pools of Ray actors: calls with a time limit, restarts with a bound, and errors that name who failed."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray import ObjectRefGenerator
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from common.errors import LearnerOutOfMemoryError, PipelineError, UserError
from deploy.run_directory import RunDirectory

Spawn = Callable[[str, str], ActorHandle]
"""(actor's name, its log file) -> a new actor"""

MAX_ATTEMPTS = 3
"""How often one call is tried, each time on a live replica, before the run stops."""


class ActorLostError(PipelineError):
    """An actor died, or gave no answer in time; what it was asked for may be asked of another."""


class Actor:
    """One Ray actor: its calls have a time limit, and its errors say who it is and where its log lies."""

    def __init__(self, name: str, log_path: str, spawn: Spawn) -> None:
        self.name = name
        self._log_path = log_path
        self._spawn = spawn
        self._handle: ActorHandle | None = None

    @property
    def alive(self) -> bool:
        """Whether it was created, and has not been lost since."""
        return self._handle is not None

    def create(self) -> None:
        """Create the actor, without waiting for it."""
        self._handle = self._spawn(self.name, self._log_path)

    async def start(self, timeout: float) -> None:
        """Create the actor and wait until it is ready.

        Raises:
            ActorLostError, PipelineError, UserError: as for `call`.
        """
        self.create()
        await self.call("ready", timeout=timeout)

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        """Call the actor.

        Raises:
            ActorLostError: it died or gave no answer in time; it is ended then.
            PipelineError: the method raised.
            UserError: the method raised one.
        """
        if self._handle is None:
            raise ActorLostError(f"{self.name} is not running; its log is {self._log_path}.")
        try:
            answer = getattr(self._handle, method).remote(*args)
            return await asyncio.wait_for(_all(answer) if isinstance(answer, ObjectRefGenerator) else answer, timeout)
        except RayTaskError as error:  # first: it is also an instance of what the method raised, say a TimeoutError
            raise self._explained(error, method) from error
        except TimeoutError:
            self.kill()
            raise ActorLostError(
                f"{self.name} gave no answer to {method!r} within {timeout:g} s; its log is {self._log_path}."
            ) from None
        except RayError as error:
            self.kill()
            raise ActorLostError(
                f"{self.name} was lost in {method!r} ({type(error).__name__}); its log is {self._log_path}."
            ) from error

    def kill(self) -> None:
        """End the actor at once."""
        if self._handle is not None:
            with contextlib.suppress(RayError):
                ray.kill(self._handle)
            self._handle = None

    def _explained(self, error: RayTaskError, method: str) -> Exception:
        cause = error.cause
        if isinstance(cause, UserError):
            return UserError(f"{cause} ({self.name}; its log is {self._log_path})")
        if isinstance(cause, LearnerOutOfMemoryError):
            return LearnerOutOfMemoryError(f"{cause} ({self.name}; its log is {self._log_path}).", cause.smaller)
        return PipelineError(
            f"{self.name} failed in {method!r}: {type(cause).__name__}: {cause}; its log is {self._log_path}."
        )


async def _all(stream: ObjectRefGenerator) -> pa.RecordBatch:
    return pa.concat_batches([await part async for part in stream])


class Pool:
    """Replicas of one service; a call goes to whichever is idle, and is repeated on another if that one is lost."""

    def __init__(self, name: str, replicas: int, spawn: Spawn, directory: RunDirectory, start_timeout: float) -> None:
        self.name = name
        self.busy_seconds = 0.0
        self._start_timeout = start_timeout
        labels = [f"{name}-{index}" for index in range(replicas)]
        self.replicas = [Actor(label, str(directory.log(label)), spawn) for label in labels]
        self._idle: asyncio.Queue[Actor] = asyncio.Queue()

    async def start(self) -> None:
        """Start all replicas, side by side."""
        await asyncio.gather(*(replica.start(self._start_timeout) for replica in self.replicas))
        for replica in self.replicas:
            self._idle.put_nowait(replica)

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        """Call an idle replica; a lost one is restarted when its turn comes, and the call repeated elsewhere.

        Raises:
            PipelineError: the method raised, or the call lost its replica `MAX_ATTEMPTS` times.
            UserError: the method raised one.
        """
        lost: ActorLostError | None = None
        for _attempt in range(MAX_ATTEMPTS):
            replica = await self._idle.get()
            began = time.monotonic()
            try:
                if not replica.alive:
                    await replica.start(self._start_timeout)
                return await replica.call(method, *args, timeout=timeout)
            except ActorLostError as error:
                lost = error
            finally:
                self.busy_seconds += time.monotonic() - began
                self._idle.put_nowait(replica)
        raise PipelineError(f"The same call was tried {MAX_ATTEMPTS} times: {lost}") from lost

    def kill(self) -> None:
        """End all replicas."""
        for replica in self.replicas:
            replica.kill()


class LearnerGroup:
    """The learner's ranks: every call goes to all of them, and rank 0 answers.

    A lost rank ends the run: its state is the checkpoint's, and running again resumes from there.
    """

    def __init__(self, ranks: int, spawn: Callable[[int, str], ActorHandle], directory: RunDirectory) -> None:
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


def _spawn_rank(spawn: Callable[[int, str], ActorHandle], rank: int) -> Spawn:
    return lambda _name, log_path: spawn(rank, log_path)


@dataclass(frozen=True)
class Services:
    """All actors of a run."""

    samplers: Pool
    scorers: dict[str, Pool]
    learner: LearnerGroup

    def busy_seconds(self) -> dict[str, float]:
        """How long each stage's actors have been at work, summed over them."""
        return {
            "sampling": self.samplers.busy_seconds,
            "scoring": sum(pool.busy_seconds for pool in self.scorers.values()),
            "training": self.learner.busy_seconds,
        }

    def kill(self) -> None:
        """End all actors."""
        for pool in (self.samplers, *self.scorers.values()):
            pool.kill()
        self.learner.kill()
