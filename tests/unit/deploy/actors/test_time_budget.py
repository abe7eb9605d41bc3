import asyncio
from contextlib import closing

import pytest

from brain_align.deploy.actors.actor import TimeBudget


def test_a_block_after_the_limit_leaves_the_cancellation_of_another_alone() -> None:
    async def spend() -> None:
        task = asyncio.current_task()
        assert task is not None
        with closing(TimeBudget(0.01)) as budget:
            with pytest.raises(OSError, match="hung up"), budget:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    raise OSError("hung up") from None
            assert task.cancelling() == 0
            with budget:
                task.cancel()
                await asyncio.sleep(60)

    async def start() -> asyncio.Task[None]:
        task = asyncio.create_task(spend())
        await asyncio.wait([task])
        return task

    assert asyncio.run(start()).cancelled()
