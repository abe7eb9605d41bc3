import asyncio
from contextlib import closing

import pytest

from brain_align.deploy.actors.time_budget import TimeBudget


def test_only_what_is_spent_in_blocks_counts() -> None:
    async def spend() -> None:
        with closing(TimeBudget(0.5)) as allowance:
            with allowance:
                await asyncio.sleep(0)
            await asyncio.sleep(0.6)  # the timer has come and gone
            with allowance:
                await asyncio.sleep(0)

    asyncio.run(spend())


def test_all_blocks_together_have_the_limit() -> None:
    finished = 0

    async def spend() -> None:
        nonlocal finished
        with closing(TimeBudget(0.25)) as allowance:
            for _ in range(20):
                with allowance:
                    await asyncio.sleep(0.1)
                finished += 1
                await asyncio.sleep(0.3)  # so that a later block has to set the timer

    with pytest.raises(TimeoutError):
        asyncio.run(spend())
    assert finished <= 2


def test_whoever_cancels_the_task_is_not_told_of_a_limit() -> None:
    async def spend() -> None:
        with closing(TimeBudget(60)) as allowance, allowance:
            await asyncio.sleep(60)

    async def cancel() -> asyncio.Task[None]:
        task = asyncio.create_task(spend())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        return task

    assert asyncio.run(cancel()).cancelled()


def test_a_block_after_the_limit_leaves_the_cancellation_of_another_alone() -> None:
    async def spend() -> None:
        task = asyncio.current_task()
        assert task is not None
        with closing(TimeBudget(0.01)) as allowance:
            with pytest.raises(OSError, match="hung up"), allowance:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    raise OSError("hung up") from None
            assert task.cancelling() == 0
            with allowance:
                task.cancel()
                await asyncio.sleep(60)

    async def start() -> asyncio.Task[None]:
        task = asyncio.create_task(spend())
        await asyncio.wait([task])
        return task

    assert asyncio.run(start()).cancelled()


def test_a_task_goes_on_after_a_limit_as_if_nothing_had_cancelled_it() -> None:
    async def spend() -> int:
        with pytest.raises(TimeoutError), closing(TimeBudget(0.01)) as allowance, allowance:
            await asyncio.sleep(60)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert asyncio.run(spend()) == 0


def test_a_closed_allowance_leaves_no_timer_behind() -> None:
    async def spend() -> None:
        with closing(TimeBudget(0.02)) as allowance, allowance:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)

    asyncio.run(spend())
