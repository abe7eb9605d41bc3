"""Ray actors behind `Handle`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Self

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from typing_extensions import override

from brain_align.deploy.actors.actor import CallFailedError, Handle, LostError
from brain_align.deploy.actors.ray_causes import cause


class RayHandle(Handle):
    """One actor in the Ray cluster."""

    def __init__(self, handle: ActorHandle) -> None:
        self._handle = handle

    @classmethod
    def spawn(cls, service: type, options: dict[str, object], *args: Any) -> Self:
        """Create an actor with Ray's options; raise a LostError if the cluster refuses."""
        try:
            return cls(ray.remote(service).options(**options).remote(*args))
        except RayError as error:
            raise LostError(cause(error)) from error

    @override
    async def placed(self) -> None:
        await self.call("__ray_ready__")

    @override
    async def call(self, method: str, *args: Any) -> Any:
        try:
            return await getattr(self._handle, method).remote(*args)
        except RayTaskError as error:  # first: it is also an instance of what the method raised, say a TimeoutError
            raise CallFailedError(error.cause) from error
        except RayError as error:
            raise LostError(await asyncio.to_thread(cause, error)) from error

    @override
    async def stream(self, method: str, *args: Any) -> AsyncGenerator[Any]:
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
            raise LostError(await asyncio.to_thread(cause, error)) from error

    @override
    def kill(self) -> None:
        with contextlib.suppress(RayError):
            ray.kill(self._handle)
