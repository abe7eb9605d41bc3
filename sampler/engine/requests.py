"""Requests to vLLM's engine, in vLLM's terms, and the parts of its output that are used."""

from collections.abc import Sequence
from typing import Any

from brain_align.common.config.sampling import SamplingSection
from brain_align.common.errors import PipelineError
from brain_align.sampler.engine.data import Adapter, Completion
from brain_align.sampler.engine.failures import saying_if_it_died

BEFORE_ALL_OTHERS = -1
"""Priority of requests that run before all others, which have 0. A repeatable engine ignores priorities."""


class Requests:
    """The requests of one engine, each represented by the queue (`RequestOutputCollector`) for its outputs."""

    def __init__(self, llm: Any) -> None:  # vLLM's `AsyncLLM`
        self._llm = llm
        self._count = 0

    async def add(self, token_ids: Sequence[int], parameters: Any, adapter: Adapter | None, priority: int = 0) -> Any:
        """Submit one request with vLLM's `SamplingParams`; return the queue that will receive its outputs.

        Without an adapter, the model itself computes. The lowest priority runs first.

        Raises:
            EngineLostError: the engine has died.
        """
        from vllm.inputs.engine import tokens_input

        self._count += 1
        with saying_if_it_died(self._llm):
            return await self._llm.add_request(
                str(self._count),
                tokens_input(list(token_ids)),
                parameters,
                lora_request=lora_request(adapter) if adapter else None,
                priority=priority,
            )

    async def finished(self, request: Any) -> Any:
        """Wait for a request's complete output (`RequestOutput`).

        Raises:
            EngineLostError: the engine has died.
        """
        with saying_if_it_died(self._llm):
            return await request.get()

    async def abort(self, requests: Sequence[Any]) -> None:
        """Abort the requests that are not finished."""
        await self._llm.abort([one.request_id for one in requests], internal=True)


def sampling_parameters(sampling: SamplingSection, n: int, end_tokens: Sequence[int]) -> Any:
    """Return the parameters of a request for n outputs, each with the log-probabilities of its own tokens."""
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
        stop_token_ids=list(end_tokens),
        logprobs=0,  # the sampled token's own, and no other
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_parameters(token: int) -> Any:
    """Return the parameters of a request for the log-probability of one token."""
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1, logprob_token_ids=[token], detokenize=False)


def lora_request(adapter: Adapter) -> Any:
    """Return vLLM's reference to an adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.digest, adapter.id, str(adapter.directory))


def completions(finished: Any, index: int, n: int) -> list[Completion]:
    """Return the outputs of a finished request for n outputs of the prompt at `index`.

    Raises:
        PipelineError: they are not n, or one is empty, was aborted, or is not what was asked for.
    """
    outputs = [completion(one) for one in finished.outputs]
    if len(outputs) != n or not all(output.token_ids for output in outputs):
        raise PipelineError(f"vLLM returned {len(outputs)} outputs for prompt {index}, not {n}, or empty ones.")
    return outputs


def completion(output: Any) -> Completion:
    """Convert one of vLLM's outputs.

    Raises:
        PipelineError: it was aborted, or is not what was asked for.
    """
    if output.finish_reason not in ("stop", "length"):
        raise PipelineError(f"vLLM aborted an output, with finish reason {output.finish_reason!r}.")
    logprobs = output.logprobs  # flat: one entry per token, the sampled one
    if list(logprobs.token_ids) != list(output.token_ids):
        raise PipelineError("vLLM returned log-probabilities of tokens other than those that it sampled.")
    return Completion(list(output.token_ids), list(logprobs.logprobs), output.finish_reason)
