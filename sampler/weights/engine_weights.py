"""The weights that vLLM's engine computes with: adapters side by side, or a whole model, read or received."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

from brain_align.common.errors import PipelineError
from brain_align.sampler.engine.data import Adapter
from brain_align.sampler.engine.engine import Engine
from brain_align.sampler.engine.failures import not_loaded, saying_if_it_died
from brain_align.sampler.engine.requests import lora_request
from brain_align.sampler.weights.receiving import NotReceivedError, WeightSource

_FIRST_POLL, _LONGEST_POLL = 0.02, 0.5
"""Seconds between two looks at a reception: twice as many each time, since sampling steps wait for the answer."""


class EngineWeights:
    """Loads and drops the weights of one engine.

    Every method raises EngineLostError if the engine has died.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._llm = engine.llm

    async def add_adapter(self, adapter: Adapter) -> None:
        """Load an adapter, between two steps of the running requests.

        Raises:
            UserError: it does not fit the engine's model or largest rank.
            DeliveryError: it was not loaded for a reason that may pass.
        """
        with saying_if_it_died(self._llm):
            try:
                await self._llm.add_lora(lora_request(adapter))
            except Exception as error:  # vLLM passes on its process's errors as plain ones
                raise not_loaded(f"the adapter in {adapter.directory}", error) from error

    async def remove_adapter(self, adapter: Adapter) -> None:
        """Drop an adapter that no request uses; do nothing where the engine does not have it."""
        with saying_if_it_died(self._llm):
            await self._llm.remove_lora(adapter.id)

    async def load(self, directory: Path) -> None:
        """Replace the model's weights by those in a directory (HF format); nothing may be running.

        If that breaks off, by an error or a cancellation, the engine is lost: vLLM keeps the tensors that it was
        given, which get in the way of the next ones.

        Raises:
            UserError: they are not weights of the engine's model.
            DeliveryError: they were not loaded for a reason that may pass.
        """
        path = str(directory)
        await self._replace(
            f"the weights in {path}", lambda: self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        )

    async def load_merged(self, adapter: Path) -> float:
        """Replace the model's weights by those of the base model with an adapter added; nothing may be running.

        If that breaks off, the engine is lost, as for `load`.

        Returns:
            The share of the adapter's change that rounding to the model's dtype takes: 0 none, 1 all.

        Raises:
            UserError: the adapter is not one of the engine's model.
            DeliveryError: it was not loaded for a reason that may pass.
        """
        shares: list[float] = []

        async def load() -> None:
            shares.extend(await self._llm.collective_rpc("load_merged", args=(str(adapter),)))

        await self._replace(f"the adapter in {adapter}", load)
        return max(shares)

    async def receive(self, source: WeightSource) -> None:
        """Have vLLM's processes receive a whole model while they sample on; `load_received` loads it.

        A model that was received before, and not loaded, is dropped. So is this one if the reception breaks off.

        Raises:
            NotReceivedError: it was refused, broke off, took too long, or is not what was published.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        deadline = time.monotonic() + source.time_limit
        with saying_if_it_died(self._llm):
            try:
                await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(asdict(source)))
                pause = _FIRST_POLL
                while not await self._has_received():
                    if time.monotonic() > deadline:
                        raise NotReceivedError(f"it took longer than {source.time_limit:g} s")
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_POLL)
            except BaseException:  # also when the request is cancelled
                await self._llm.shutdown_weight_transfer_engine()
                raise

    async def load_received(self) -> None:
        """Replace the model's weights by those that were received; nothing may be running.

        Raises:
            UserError, DeliveryError: as for `load`.
        """
        await self._replace("the weights that it received", self._load_received)

    async def _has_received(self) -> bool:
        states = await self._llm.collective_rpc("reception")
        for _, failure in states:
            if failure is not None:
                raise NotReceivedError(failure)
        return all(ended for ended, _ in states)

    async def _load_received(self) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.start_weight_update()
        await self._llm.update_weights(WeightTransferUpdateRequest({}))
        await self._llm.finish_weight_update()

    async def _replace(self, what: str, load: Callable[[], Awaitable[object]]) -> None:
        self._engine.check()
        try:
            with saying_if_it_died(self._llm):
                try:
                    await load()
                    await self._llm.collective_rpc("repack_output_layer")
                except Exception as error:  # as in `add_adapter`
                    raise not_loaded(what, error) from error
                if not await self._llm.reset_prefix_cache():
                    raise PipelineError("vLLM did not empty its prefix cache, which belongs to the former weights.")
        except BaseException:  # also when the request is cancelled
            self._engine.torn = True
            raise
