"""Whole models that are sent to vLLM's engine, in the calls that it has for that."""

import asyncio
import time
from dataclasses import asdict
from typing import Any

from brain_align.sampler.engine.data import NotReceivedError, WeightSource

_FIRST_LOOK, _LAST_LOOKS = 0.02, 0.5
"""Seconds until a version that is being received is looked at: twice as many each time, since a step waits for it."""


async def receive(llm: Any, source: WeightSource) -> None:
    """Have the engine's processes receive a model, while they sample on; where that breaks off, they forget it.

    Args:
        llm: vLLM's `AsyncLLM`.
        source: where the model is had from.

    Raises:
        NotReceivedError: it was refused, broke off, took too long, or is not what was published.
    """
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

    deadline = time.monotonic() + source.time_limit
    try:
        await llm.init_weight_transfer_engine(WeightTransferInitRequest(asdict(source)))
        pause = _FIRST_LOOK
        while not await _has_received(llm):
            if time.monotonic() > deadline:
                raise NotReceivedError(f"it took longer than {source.time_limit:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_LOOKS)
    except BaseException:  # when the lease is cancelled, too
        await llm.shutdown_weight_transfer_engine()
        raise


async def _has_received(llm: Any) -> bool:
    states = await llm.collective_rpc("reception")
    for _, failure in states:
        if failure is not None:
            raise NotReceivedError(failure)
    return all(ended for ended, _ in states)


async def load_received(llm: Any) -> None:
    """Put what was received into the model.

    Args:
        llm: vLLM's `AsyncLLM`; nothing may be running.
    """
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    await llm.start_weight_update()
    await llm.update_weights(WeightTransferUpdateRequest({}))
    await llm.finish_weight_update()
