"""Actors of Ray, as `brain_align.deploy.actors.actor` knows actors."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Self

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from brain_align.deploy.actors.actor import CallFailedError, LostError


class RayHandle:
    """One actor in the Ray cluster; see `brain_align.deploy.actors.actor.Handle`."""

    def __init__(self, handle: ActorHandle) -> None:
        self._handle = handle

    @classmethod
    def spawn(cls, service: type, options: dict[str, object], *args: Any) -> Self:
        """Create an actor, with Ray's options.

        Raises:
            LostError: the cluster refused.
        """
        try:
            return cls(ray.remote(service).options(**options).remote(*args))
        except RayError as error:
            raise LostError(f"{type(error).__name__}: {error}") from error

    async def placed(self) -> None:
        """See `Handle`."""
        await self.call("__ray_ready__")

    async def call(self, method: str, *args: Any) -> Any:
        """See `Handle`."""
        try:
            return await getattr(self._handle, method).remote(*args)
        except RayTaskError as error:  # first: it is also an instance of what the method raised, say a TimeoutError
            raise CallFailedError(error.cause) from error
        except RayError as error:
            raise LostError(type(error).__name__) from error

    async def stream(self, method: str, *args: Any) -> AsyncGenerator[Any]:
        """See `Handle`."""
        try:
            items = getattr(self._handle, method).options(num_returns="streaming").remote(*args)
            try:
                async for item in items:
                    yield await item
            except (asyncio.CancelledError, GeneratorExit):  # nobody wants the rest: others may share the actor
                with contextlib.suppress(RayError):
                    ray.cancel(items)
                raise
        except RayTaskError as error:
            raise CallFailedError(error.cause) from error
        except RayError as error:
            raise LostError(type(error).__name__) from error

    def kill(self) -> None:
        """See `Handle`."""
        with contextlib.suppress(RayError):
            ray.kill(self._handle)
