"""Tasks beside a block, which end with it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from brain_align.common.errors import first_failure

Begin = Callable[[Coroutine[Any, Any, None]], None]  # starts a task


@asynccontextmanager
async def background_tasks() -> AsyncIterator[Begin]:
    """Yield what starts a task beside the block; tasks that still run when the block ends are cancelled.

    Raises:
        Exception: the first failure of a task, which also cancels the block, or of the block.
    """
    under_way: set[asyncio.Task[None]] = set()
    try:
        async with asyncio.TaskGroup() as tasks:

            def begin(work: Coroutine[Any, Any, None]) -> None:
                task = tasks.create_task(work)
                under_way.add(task)
                task.add_done_callback(under_way.discard)

            yield begin
            for task in under_way:
                task.cancel()
    except ExceptionGroup as failures:
        raise first_failure(failures) from failures
