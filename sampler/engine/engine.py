"""vLLM behind one class: its start, what is sampled with it, and which weights it has."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from brain_align.common.config.sampling import SamplingSection
from brain_align.common.errors import EngineLostError, PipelineError
from brain_align.sampler.engine.data import Adapter, Completion, WeightSource
from brain_align.sampler.engine.failures import not_loaded, not_started, saying_if_it_died
from brain_align.sampler.engine.requests import (
    BEFORE_ALL_OTHERS,
    Requests,
    completions,
    lora_request,
    sampling_parameters,
    scoring_parameters,
)
from brain_align.sampler.engine.sent_weights import load_received, receive
from brain_align.sampler.engine.settings import EngineSettings, engine_arguments, prepare_environment
from brain_align.sampler.engine.step_log import StepLog


class Engine:
    """A vLLM engine, in processes of its own that end with this one.

    Requests of all callers run side by side in vLLM's continuous batching. The log-probabilities are those of the
    distribution sampled from (`processed_logprobs`; vLLM's default would ignore temperature and truncation).

    Attributes:
        vocabulary: token ids are below it.
        max_model_tokens: prompt and output together.
        running_at_most: outputs that are computed side by side; further ones wait.
        step_log: is told of each step.
    """

    def __init__(self, settings: EngineSettings) -> None:
        """Start the engine, which takes tens of seconds; no event loop is needed for it.

        Raises:
            UserError: vLLM refuses the model or the settings.
        """
        prepare_environment(settings)
        from vllm import AsyncEngineArgs  # heavy, and reads the environment when imported
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            self._llm = AsyncLLM.from_engine_args(
                AsyncEngineArgs(**engine_arguments(settings)),
                usage_context=UsageContext.LLM_CLASS,  # has the defaults for throughput
            )
        except (ValueError, OSError) as error:
            raise not_started(settings.model, error) from error
        self.vocabulary: int = self._llm.model_config.get_vocab_size()
        self.max_model_tokens: int = self._llm.model_config.max_model_len
        self.running_at_most: int = self._llm.scheduler_config.max_num_seqs
        self.step_log = StepLog()
        self._llm.logger_manager = self.step_log
        self._requests = Requests(self._llm)
        self._torn = False  # the model's weights are those of several models, since replacing them broke off

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSection,
        *,
        n: int,
        eos_token_id: int,
        adapter: Adapter | None,
        seed: int | None,
    ) -> AsyncGenerator[tuple[int, list[Completion]]]:
        """Sample n outputs for each prompt, and yield each prompt's as soon as they are finished.

        Args:
            prompts: token ids of each prompt.
            sampling: the distribution, and the length.
            n: outputs a prompt.
            eos_token_id: ends an output; it is then the output's last id.
            adapter: to sample with; None: the model itself.
            seed: equal calls with equal seeds give equal bytes, whatever was sampled before: the engine is held until
                it has all requests, starts from an empty prefix cache, and its generator is seeded. Nothing else may
                run meanwhile. None: the requests join those that are running.

        Yields:
            The prompt's index and its outputs.

        Raises:
            EngineLostError: the engine has died.
            PipelineError: vLLM returned something else than was asked for.
        """
        parameters = sampling_parameters(sampling, n, eos_token_id)
        requests: list[Any] = []
        finishing: list[asyncio.Task[tuple[int, list[Completion]]]] = []
        try:
            async with nullcontext() if seed is None else self._held(seed):
                for ids in prompts:
                    requests.append(await self._requests.add(ids, parameters, adapter))
            finishing = [asyncio.create_task(self._outputs(index, one, n)) for index, one in enumerate(requests)]
            for finished in asyncio.as_completed(finishing):
                yield await finished
        finally:
            for task in finishing:
                task.cancel()
            await self._requests.abort(requests)

    async def _outputs(self, index: int, request: Any, n: int) -> tuple[int, list[Completion]]:
        return index, completions(await self._requests.finished(request), index, n)

    @asynccontextmanager
    async def _held(self, seed: int) -> AsyncIterator[None]:
        """Within it, the engine takes requests but runs none; then all at once, from an empty cache and a new seed."""
        with saying_if_it_died(self._llm):
            try:
                await self._llm.pause_generation(mode="keep", clear_cache=True)
                await self._llm.collective_rpc("seed_sampling", args=(seed,))
                yield
            finally:
                await self._llm.resume_generation()

    async def continuation_logprobs(
        self, prompt: Sequence[int], continuation: Sequence[int], adapter: Adapter | None
    ) -> list[float]:
        """The model's own log-probability, in nats, of each token of a continuation; goes before all that waits.

        Each token is asked for as the next one of a request of its own: vLLM's `prompt_logprobs` end the engine when an
        adapter is used and other requests are running.

        Raises:
            EngineLostError: the engine has died.
        """
        requests: list[Any] = []
        try:
            for place, token in enumerate(continuation):
                ids = [*prompt, *continuation[:place]]
                requests.append(await self._requests.add(ids, scoring_parameters(token), adapter, BEFORE_ALL_OTHERS))
            finished = [await self._requests.finished(request) for request in requests]
        finally:
            await self._requests.abort(requests)
        return [
            float(one.outputs[0].logprobs[0][token].logprob) for one, token in zip(finished, continuation, strict=True)
        ]

    async def add_adapter(self, adapter: Adapter) -> None:
        """Load an adapter, between two steps of what is running.

        Raises:
            UserError: it does not fit the engine's model or largest rank.
            DeliveryError: it was not loaded for a reason that may pass.
            EngineLostError: the engine has died.
        """
        with saying_if_it_died(self._llm):
            try:
                await self._llm.add_lora(lora_request(adapter))
            except Exception as error:  # vLLM passes on what its process says as a plain one
                raise not_loaded(f"the adapter in {adapter.directory}", error) from error

    async def remove_adapter(self, adapter: Adapter) -> None:
        """Forget an adapter, which no request may be using; nothing is done where the engine does not have it.

        Raises:
            EngineLostError: the engine has died.
        """
        with saying_if_it_died(self._llm):
            await self._llm.remove_lora(adapter.id)

    async def receive_weights(self, source: WeightSource) -> None:
        """Have vLLM's processes receive a whole model, while they sample on; `load_received` is what comes after.

        What was received before, and not loaded, is forgotten.

        Raises:
            NotReceivedError: it was refused, broke off, took too long, or is not what was published.
            EngineLostError: the engine has died.
        """
        with saying_if_it_died(self._llm):
            await receive(self._llm, source)

    async def load_received(self) -> None:
        """Replace the model's weights by those that were received; nothing may be running.

        Raises:
            UserError, EngineLostError: as for `load_weights`.
        """
        await self._replace_weights("the weights that it received", lambda: load_received(self._llm))

    async def load_weights(self, directory: Path) -> None:
        """Replace the model's weights by those of another one (HF format); nothing may be running.

        If that breaks off, by an error or because it was cancelled, the engine is lost: vLLM keeps the tensors that it
        was given, which get in the way of the next ones.

        Raises:
            UserError: they are not weights of the engine's model.
            EngineLostError: the engine has died, or was lost to an earlier call.
        """
        path = str(directory)
        await self._replace_weights(
            f"the weights in {path}", lambda: self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        )

    async def _replace_weights(self, what: str, load: Callable[[], Awaitable[object]]) -> None:
        self.check()
        replaced = False
        try:
            with saying_if_it_died(self._llm):
                try:
                    await load()
                    await self._llm.collective_rpc("repack_output_layer")
                except Exception as error:  # as in `add_adapter`
                    raise not_loaded(what, error) from error
                if not await self._llm.reset_prefix_cache():
                    raise PipelineError("vLLM did not empty its prefix cache, which belongs to the former weights.")
            replaced = True
        finally:
            self._torn = not replaced

    def check(self) -> None:
        """Do nothing, if the engine is alive and its weights are those of one model.

        Raises:
            EngineLostError: they are not.
        """
        if self._llm.errored:
            raise EngineLostError("vLLM's engine has died; its last words are in the log.")
        if self._torn:
            raise EngineLostError("vLLM's engine holds parts of several models, since loading one of them broke off.")

    def close(self) -> None:
        """End the engine's processes."""
        self._llm.shutdown()
