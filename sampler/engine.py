"""vLLM behind one class: the only file that knows its interface, which changes between releases."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.config.sampling import SamplingSection
from common.errors import DeliveryError, EngineLostError, PipelineError, UserError, first_line
from sampler.engine_data import Adapter, Completion, NotReceivedError, WeightSource
from sampler.engine_settings import EngineSettings, engine_arguments, prepare_environment

_FIRST = -1
"""The priority of requests that go before all others, which have 0. A repeatable engine goes by their order alone."""

_FIRST_LOOK, _LAST_LOOKS = 0.02, 0.5
"""Seconds until a version that is being received is looked at: twice as many each time, since a step waits for it."""

_PASSING = ("out of memory", "cuda error", "cublas", "nccl", "[errno ", "no such file", "i/o error", "timed out")
"""What vLLM's message has where a version could not be loaded for a reason that may pass; its types are lost on the way
from its process."""


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
            raise UserError(f"vLLM does not load policy.model={settings.model}: {_reason(error)}") from error
        self.vocabulary: int = self._llm.model_config.get_vocab_size()
        self.max_model_tokens: int = self._llm.model_config.max_model_len
        self.running_at_most: int = self._llm.scheduler_config.max_num_seqs
        self.step_log = StepLog()
        self._llm.logger_manager = self.step_log
        self._requests = 0
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
        parameters = _parameters(sampling, n, eos_token_id)
        requests: list[Any] = []
        finishing: list[asyncio.Task[tuple[int, list[Completion]]]] = []
        try:
            async with nullcontext() if seed is None else self._held(seed):
                for ids in prompts:
                    requests.append(await self._add(ids, parameters, adapter))
            finishing = [asyncio.create_task(self._outputs(index, one, n)) for index, one in enumerate(requests)]
            for finished in asyncio.as_completed(finishing):
                yield await finished
        finally:
            for task in finishing:
                task.cancel()
            await self._abort(requests)

    @asynccontextmanager
    async def _held(self, seed: int) -> AsyncIterator[None]:
        """Within it, the engine takes requests but runs none; then all at once, from an empty cache and a new seed."""
        with self._saying_if_it_died():
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
                requests.append(await self._add(ids, _scoring(token), adapter, priority=_FIRST))
            finished = [await self._finished(request) for request in requests]
        finally:
            await self._abort(requests)
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
        with self._saying_if_it_died():
            try:
                await self._llm.add_lora(_lora_request(adapter))
            except Exception as error:  # vLLM passes on what its process says as a plain one
                raise not_loaded(f"the adapter in {adapter.directory}", error) from error

    async def remove_adapter(self, adapter: Adapter) -> None:
        """Forget an adapter, which no request may be using; nothing is done where the engine does not have it.

        Raises:
            EngineLostError: the engine has died.
        """
        with self._saying_if_it_died():
            await self._llm.remove_lora(adapter.id)

    async def receive_weights(self, source: WeightSource) -> None:
        """Have vLLM's processes receive a whole model, while they sample on; `load_received` is what comes after.

        What was received before, and not loaded, is forgotten.

        Raises:
            NotReceivedError: it was refused, broke off, took too long, or is not what was published.
            EngineLostError: the engine has died.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        deadline = time.monotonic() + source.time_limit
        with self._saying_if_it_died():
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(asdict(source)))
            try:
                pause = _FIRST_LOOK
                while not await self._has_received():
                    if time.monotonic() > deadline:
                        raise NotReceivedError(f"it took longer than {source.time_limit:g} s")
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LAST_LOOKS)
            except BaseException:  # when the lease is cancelled, too
                await self._llm.shutdown_weight_transfer_engine()
                raise

    async def _has_received(self) -> bool:
        states = await self._llm.collective_rpc("reception")
        for _, failure in states:
            if failure is not None:
                raise NotReceivedError(failure)
        return all(ended for ended, _ in states)

    async def load_received(self) -> None:
        """Replace the model's weights by those that were received; nothing may be running.

        Raises:
            UserError, EngineLostError: as for `load_weights`.
        """
        await self._replace_weights("the weights that it received", self._load_received)

    async def _load_received(self) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.start_weight_update()
        await self._llm.update_weights(WeightTransferUpdateRequest({}))
        await self._llm.finish_weight_update()

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
            with self._saying_if_it_died():
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

    async def _add(
        self, token_ids: Sequence[int], parameters: Any, adapter: Adapter | None, *, priority: int = 0
    ) -> Any:
        """Hand the engine one request; returns the queue that will get its outputs."""
        from vllm.inputs.engine import tokens_input

        self._requests += 1
        request = _lora_request(adapter) if adapter else None
        with self._saying_if_it_died():
            return await self._llm.add_request(
                str(self._requests),
                tokens_input(list(token_ids)),
                parameters,
                lora_request=request,
                priority=priority,
            )

    async def _abort(self, requests: Sequence[Any]) -> None:
        """Give up those that are not finished."""
        await self._llm.abort([one.request_id for one in requests], internal=True)

    async def _outputs(self, index: int, request: Any, n: int) -> tuple[int, list[Completion]]:
        outputs = [completion(one) for one in (await self._finished(request)).outputs]
        if len(outputs) != n or not all(output.token_ids for output in outputs):
            raise PipelineError(f"vLLM returned {len(outputs)} outputs for prompt {index}, not {n}, or empty ones.")
        return index, outputs

    async def _finished(self, request: Any) -> Any:
        """What vLLM returns for a request, complete."""
        with self._saying_if_it_died():
            return await request.get()

    @contextmanager
    def _saying_if_it_died(self) -> Iterator[None]:
        """Within it, whatever goes wrong because the engine has died is an EngineLostError."""
        try:
            yield
        except Exception as error:
            if self._llm.errored:
                raise EngineLostError(f"vLLM's engine has died: {first_line(error)}") from error
            raise


class StepLog:
    """What AsyncLLM tells of each step, in the place of its own statistics, which cost more than they tell.

    Attributes:
        newest: when the newest step ended (`time.monotonic`).
        watch: is given that time of every step.
    """

    def __init__(self) -> None:
        self.newest = time.monotonic()
        self.watch: Callable[[float], None] = lambda _ended: None

    def record(self, **_statistics: object) -> None:
        """AsyncLLM calls this."""
        self.newest = time.monotonic()
        self.watch(self.newest)


def _parameters(sampling: SamplingSection, n: int, eos_token_id: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        max_tokens=sampling.max_tokens,
        stop_token_ids=[eos_token_id],
        logprobs=0,  # the sampled token's own, and no other
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _scoring(token: int) -> Any:
    """Parameters of a request that asks for the log-probability of one token."""
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1, logprob_token_ids=[token], detokenize=False)


def _lora_request(adapter: Adapter) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.digest, adapter.id, str(adapter.directory))


def _reason(error: Exception) -> str:
    return str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else first_line(error)


def not_loaded(what: str, error: Exception) -> UserError | DeliveryError:
    """The error for what vLLM did not load: which blames the version, or the moment."""
    passing = any(sign in str(error).lower() for sign in _PASSING)
    kind = DeliveryError if passing else UserError
    return kind(f"vLLM does not load {what}: {first_line(error)}")


def completion(output: Any) -> Completion:
    """An output of vLLM's.

    Raises:
        PipelineError: it was broken off, or is not what was asked for.
    """
    if output.finish_reason not in ("stop", "length"):
        raise PipelineError(f"vLLM broke off an output, with finish reason {output.finish_reason!r}.")
    logprobs = output.logprobs  # flat: one entry for each token, which is the sampled one
    if list(logprobs.token_ids) != list(output.token_ids):
        raise PipelineError("vLLM returned log-probabilities of other tokens than those that it sampled.")
    return Completion(list(output.token_ids), list(logprobs.logprobs), output.finish_reason)
