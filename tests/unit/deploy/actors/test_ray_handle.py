"""What is said of an actor that Ray has lost."""

import asyncio
from typing import cast

import pytest
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayError

from brain_align.deploy.actors.actor import LostError
from brain_align.deploy.actors.ray_handle import RayHandle

KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) …"
)


class ActorDiedError(RayError):
    """Ray's own can only be made from what its cluster says."""


class Lost:
    """An actor of Ray whose methods find it lost."""

    def __init__(self, error: RayError) -> None:
        self.error = error

    @property
    def score(self) -> "Lost":
        return self

    async def remote(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ActorDiedError(KILLED), "ActorDiedError: its process was killed by SIGKILL, as the system does when memory"),
        (ActorDiedError("The actor died because its node has died. Node Id: 1"), "ActorDiedError: its node was lost"),
        (ActorUnavailableError("rpc failed", None), "ActorUnavailableError"),
    ],
)
def test_a_lost_actor_says_how_it_was_lost(error: RayError, reason: str) -> None:
    with pytest.raises(LostError) as lost:
        asyncio.run(RayHandle(cast(ActorHandle, Lost(error))).call("score"))
    assert str(lost.value).startswith(reason)
