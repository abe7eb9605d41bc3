"""Pools of Ray actors: calls with a time limit, restarts with a bound, and errors that name who failed."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from common.errors import PipelineError, UserError
from deploy.run_directory import RunDirectory

Spawn = Callable[[str, str], ActorHandle]
"""(actor's name, its log file) -> a new actor"""

MAX_ATTEMPTS = 3
"""How often one call is tried on a fresh or restarted replica before the run stops."""


class Replica:
    """One actor of a pool, restarted when it dies."""

    def __init__(self, name: str, log_path: str, spawn: Spawn, start_timeout: float) -> None:
        self.name = name
        self.log_path = log_path
        self.restarts = 0
        self._spawn = spawn
        self._start_timeout = start_timeout
        self._actor: ActorHandle | None = None

    async def start(self) -> None:
        """Create the actor and wait until it is ready.

        Raises:
            PipelineError: it did not become ready in time, or failed.
        """
        self._actor = self._spawn(self.name, self.log_path)
        await self.call("ready", timeout=self._start_timeout)

    async def restart(self) -> None:
        """End what is left of the actor and start a new one."""
        self.restarts += 1
        self.kill()
        await self.start()

    def kill(self) -> None:
        """End the actor at once."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        """Call the actor.

        Raises:
            RayActorError: the actor has died.
            PipelineError: it gave no answer in time, or raised.
            UserError: it raised one.
        """
        assert self._actor is not None, f"{self.name} was not started"
        try:
            return await asyncio.wait_for(getattr(self._actor, method).remote(*args), timeout)
        except (TimeoutError, GetTimeoutError):
            raise PipelineError(
                f"{self.name} gave no answer to {method!r} within {timeout:g} s; its log is {self.log_path}."
            ) from None
        except RayTaskError as error:
            raise _explained(error, f"{self.name} failed in {method!r}", self.log_path) from error


def _explained(error: RayTaskError, what: str, log_path: str) -> Exception:
    cause = error.cause
    if isinstance(cause, UserError):
        return UserError(str(cause))
    return PipelineError(f"{what}: {type(cause).__name__}: {cause}; its log is {log_path}.")


class Pool:
    """Replicas of one service; a call goes to whichever is idle, and is repeated elsewhere if that one dies."""

    def __init__(self, name: str, replicas: int, spawn: Spawn, directory: RunDirectory, start_timeout: float) -> None:
        self.name = name
        self.busy_seconds = 0.0
        self.replicas = [
            Replica(label, str(directory.log(label)), spawn, start_timeout)
            for label in (f"{name}-{index}" for index in range(replicas))
        ]
        self._idle: asyncio.Queue[Replica] = asyncio.Queue()

    async def start(self) -> None:
        """Start all replicas, side by side."""
        await asyncio.gather(*(self._start(replica) for replica in self.replicas))

    async def _start(self, replica: Replica) -> None:
        try:
            await replica.start()
        except RayActorError as error:
            raise PipelineError(f"{replica.name} died while it started; its log is {replica.log_path}.") from error
        self._idle.put_nowait(replica)

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        """Call an idle replica; one that dies is restarted, and the call repeated up to `MAX_ATTEMPTS` times.

        Raises:
            PipelineError: the call killed its replica each time, or failed, or took too long.
        """
        for _attempt in range(MAX_ATTEMPTS):
            replica = await self._idle.get()
            began = time.monotonic()
            try:
                return await replica.call(method, *args, timeout=timeout)
            except RayActorError:
                await replica.restart()
            finally:
                self.busy_seconds += time.monotonic() - began
                self._idle.put_nowait(replica)
        raise PipelineError(
            f"{self.name} died {MAX_ATTEMPTS} times at the same {method!r} call; the last log is {replica.log_path}."
        )

    def kill(self) -> None:
        """End all replicas."""
        for replica in self.replicas:
            replica.kill()


class LearnerGroup:
    """The learner's ranks: every call goes to all of them, and rank 0 answers.

    A rank that dies ends the run: its state is the checkpoint's, and running again resumes from there.
    """

    def __init__(self, ranks: int, spawn: Callable[[int, str], ActorHandle], directory: RunDirectory) -> None:
        self.busy_seconds = 0.0
        self._spawn = spawn
        self._ranks = [(f"learner-{rank}", str(directory.log(f"learner-{rank}"))) for rank in range(ranks)]
        self._actors: list[ActorHandle] = []

    async def start(self, timeout: float) -> int:
        """Start all ranks; returns the step of the checkpoint that they resumed from (0: none)."""
        self._actors = [self._spawn(rank, log_path) for rank, (_, log_path) in enumerate(self._ranks)]
        host, port = await self._answer(0, self._actors[0].address.remote(), "address", timeout)
        steps = await self.call("start", host, port, timeout=timeout)
        return int(steps)

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        """Call the same method on all ranks; returns rank 0's answer.

        Raises:
            PipelineError: a rank died, failed, or gave no answer in time (named, with its log).
        """
        began = time.monotonic()
        answers = [
            self._answer(rank, getattr(actor, method).remote(*args), method, timeout)
            for rank, actor in enumerate(self._actors)
        ]
        answer = (await asyncio.gather(*answers))[0]
        self.busy_seconds += time.monotonic() - began
        return answer

    async def _answer(self, rank: int, reference: Any, method: str, timeout: float) -> Any:
        name, log_path = self._ranks[rank]
        try:
            return await asyncio.wait_for(reference, timeout)
        except TimeoutError:
            raise PipelineError(
                f"{name} gave no answer to {method!r} within {timeout:g} s; its log is {log_path}."
            ) from None
        except RayTaskError as error:
            raise _explained(error, f"{name} failed in {method!r}", log_path) from error
        except RayActorError as error:
            raise PipelineError(
                f"{name} died in {method!r}; its log is {log_path}; run the same command again to resume."
            ) from error

    def kill(self) -> None:
        """End all ranks."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


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
