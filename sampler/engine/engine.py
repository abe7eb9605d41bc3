"""vLLM behind one class: start, sampling and log-probabilities; `sampler.weights` loads the weights it samples from."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from brain_align.common.config.sampling import SamplingSection
from brain_align.common.errors import EngineLostError
from brain_align.sampler.engine.data import Adapter, Completion
from brain_align.sampler.engine.failures import not_started, saying_if_it_died
from brain_align.sampler.engine.requests import (
    BEFORE_ALL_OTHERS,
    Requests,
    completions,
    sampling_parameters,
    scoring_parameters,
)
from brain_align.sampler.engine.settings import EngineSettings, engine_arguments, prepare_environment


class StepLog:
    """The time of vLLM's newest step, as a sign of life; replaces AsyncLLM's own, costlier statistics.

    Attributes:
        newest: when the newest step ended (`time.monotonic`).
        watch: called with that time after every step.
    """

    def __init__(self) -> None:
        self.newest = time.monotonic()
        self.watch: Callable[[float], None] = lambda _ended: None

    def record(self, **_statistics: object) -> None:
        """Note a step; AsyncLLM calls this."""
        self.newest = time.monotonic()
        self.watch(self.newest)


class Engine:
    """A vLLM engine, in processes of its own that end with this one.

    Requests of all callers run side by side in vLLM's continuous batching. The log-probabilities are those of the
    distribution sampled from (`processed_logprobs`; vLLM's default would ignore temperature and truncation).

    Attributes:
        llm: vLLM's `AsyncLLM`.
        torn: whether its weights are parts of several models, because replacing them broke off.
        vocabulary: token ids are below it.
        max_model_tokens: prompt and output together.
        running_at_most: outputs that are computed side by side; further ones wait.
        step_log: records each step.
    """

    def __init__(self, settings: EngineSettings) -> None:
        """Start the engine, which takes tens of seconds and needs no event loop.

        Raises:
            UserError: vLLM refuses the model or the settings.
        """
        prepare_environment(settings)
        from vllm import AsyncEngineArgs  # heavy, and reads the environment when imported
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            self.llm = AsyncLLM.from_engine_args(
                AsyncEngineArgs(**engine_arguments(settings)),
                usage_context=UsageContext.LLM_CLASS,  # has the defaults for throughput
            )
        except (ValueError, OSError) as error:
            raise not_started(settings.model, error) from error
        self.vocabulary: int = self.llm.model_config.get_vocab_size()
        self.max_model_tokens: int = self.llm.model_config.max_model_len
        self.running_at_most: int = self.llm.scheduler_config.max_num_seqs
        self.step_log = StepLog()
        self.llm.logger_manager = self.step_log
        self._requests = Requests(self.llm)
        self.torn = False

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSection,
        *,
        n: int,
        end_tokens: Sequence[int],
        adapter: Adapter | None,
        seed: int | None,
    ) -> AsyncGenerator[tuple[int, list[Completion]]]:
        """Sample n outputs per prompt, and yield each prompt's outputs as soon as they are finished.

        Args:
            prompts: token ids of each.
            sampling: the distribution, and the length.
            n: outputs per prompt.
            end_tokens: each ends an output, and is then its last id.
            adapter: to sample with; None: the model itself.
            seed: equal calls with equal seeds give equal bytes, whatever was sampled before: the engine is paused until
                it has all requests, starts from an empty prefix cache, and its generator is seeded. Nothing else may
                run meanwhile. None: the requests join those that are running.

        Yields:
            The prompt's index and its outputs.

        Raises:
            EngineLostError: the engine has died.
            PipelineError: vLLM returned something other than the request asked for.
        """
        parameters = sampling_parameters(sampling, n, end_tokens)
        requests: list[Any] = []
        finishing: list[asyncio.Task[tuple[int, list[Completion]]]] = []
        try:
            async with nullcontext() if seed is None else self._paused(seed):
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
    async def _paused(self, seed: int) -> AsyncIterator[None]:
        """Collect requests without running them, then run them all from an empty cache and a seeded generator."""
        with saying_if_it_died(self.llm):
            try:
                await self.llm.pause_generation(mode="keep", clear_cache=True)
                await self.llm.collective_rpc("seed_sampling", args=(seed,))
                yield
            finally:
                await self.llm.resume_generation()

    async def continuation_logprobs(
        self, prompt: Sequence[int], continuation: Sequence[int], adapter: Adapter | None
    ) -> list[float]:
        """Return the model's own log-probability, in nats, of each token of a continuation, ahead of waiting requests.

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

    def check(self) -> None:
        """Check that the engine is alive and its weights are those of one model.

        Raises:
            EngineLostError: they are not.
        """
        if self.llm.errored:
            raise EngineLostError("vLLM's engine has died; the log has its last messages.")
        if self.torn:
            raise EngineLostError("vLLM's engine holds parts of several models, because loading one of them broke off.")

    def close(self) -> None:
        """End the engine's processes."""
        self.llm.shutdown()
