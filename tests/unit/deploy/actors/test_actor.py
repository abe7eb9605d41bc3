"""The time limit of a stream: it counts the waits for items, and nothing that the caller does between them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from brain_align.deploy.actors.actor import Actor, ActorLostError
from tests.stand_ins import LocalActor


class Counter(LocalActor):
    """Counts to three, `seconds` per number."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def count(self) -> AsyncGenerator[int]:
        for number in range(3):
            await self.work(self._seconds)
            yield number


async def counted(seconds: float, timeout: float, between: float) -> list[int]:
    actor = Actor("counter", "counter.log", lambda _name, _log: Counter(seconds))
    actor.create()
    numbers = []
    async with aclosing(actor.stream("count", timeout=timeout)) as items:
        async for number in items:
            numbers.append(number)
            await asyncio.sleep(between)
    return numbers


def test_what_the_caller_does_between_items_does_not_count() -> None:
    assert asyncio.run(counted(0.0, timeout=0.5, between=0.3)) == [0, 1, 2]


def test_all_items_together_have_the_limit() -> None:
    with pytest.raises(
        ActorLostError,
        match=r"counter gave no answer to 'count' within 0\.5 s; its log, counter\.log, is not",
    ):
        asyncio.run(counted(0.3, timeout=0.5, between=0.01))


@pytest.mark.parametrize(
    ("seconds", "between"), [(60.0, 0.0), (0.0, 60.0)]
)  # while it waits, and while the caller does
def test_a_task_that_is_cancelled_is_not_told_of_a_limit(seconds: float, between: float) -> None:
    async def cancel() -> asyncio.Task[list[int]]:
        task = asyncio.create_task(counted(seconds, timeout=60, between=between))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        return task

    assert asyncio.run(cancel()).cancelled()


def test_a_task_goes_on_after_a_limit_as_if_nothing_had_cancelled_it() -> None:
    async def go_on() -> int:
        with pytest.raises(ActorLostError):
            await counted(60.0, timeout=0.01, between=0.0)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert asyncio.run(go_on()) == 0
