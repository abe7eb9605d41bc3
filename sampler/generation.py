"""Generation of one request: from prompts to GROUPS rows that are ready to be committed."""

import time
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from brain_align.common.config.sampling import SamplingSection
from brain_align.common.errors import UserError
from brain_align.common.requests import SampleRequest
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.sampler.engine.data import Completion
from brain_align.sampler.engine.engine import Engine
from brain_align.sampler.weights.versions import Use

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Generation:
    """A sampler's settings, which are the same for all requests."""

    sampling: SamplingSection
    eos_token_id: int
    decode: Decode  # without special tokens
    decode_all: Decode  # with them, for stop strings
    sampler_id: str


async def generate_groups(
    engine: Engine, request: SampleRequest, used: Use, how: Generation
) -> AsyncGenerator[pa.RecordBatch]:
    """Sample a request; yield one GROUPS row per prompt, in the order in which they finish.

    Raises:
        PipelineError: the engine broke its contract, or died.
    """
    started = time.time()
    finished = engine.sample(
        [prompt.token_ids for prompt in request.prompts],
        how.sampling,
        n=request.n,
        eos_token_id=how.eos_token_id,
        adapter=used.adapter,
        seed=request.seed if request.alone else None,
    )
    shared = {
        "round": request.round,
        "proposal_version": used.proposal.version,
        "proposal_digest": used.proposal.digest,
        "temperature": how.sampling.temperature,
        "max_tokens": how.sampling.max_tokens,
        "lease_id": request.lease_id,
        "seed": request.seed,
        "sampler_id": how.sampler_id,
        "started_at": started,
    }
    async with aclosing(finished):
        async for index, completions in finished:
            prompt = request.prompts[index]
            row = {
                "group_id": request.group_ids[index],
                "prompt_id": prompt.prompt_id,
                "prompt_text": prompt.text,
                "prompt_token_ids": list(prompt.token_ids),
                "gold_text": prompt.gold_text,
                "outputs": [_output(one, how) for one in completions],
                **shared,
                "finished_at": time.time(),
            }
            yield batch_from_rows(GROUPS, [row])


def check_prompts(request: SampleRequest, *, vocabulary: int, max_prompt_tokens: int) -> None:
    """Refuse prompts that the model cannot read, before anything of the request is sampled.

    Raises:
        UserError: a prompt is empty or too long, or has ids outside the model's vocabulary.
    """
    for prompt in request.prompts:
        where = f"Prompt {prompt.prompt_id} of request {request.lease_id}"
        if not prompt.token_ids:
            raise UserError(f"{where} is empty; remove it from the data.")
        if len(prompt.token_ids) > max_prompt_tokens:
            raise UserError(
                f"{where} has {len(prompt.token_ids)} tokens; with sampling.max_tokens of output the sampler has room "
                f"for {max_prompt_tokens}; shorten it, or raise data.max_prompt_tokens."
            )
        outside = [token for token in prompt.token_ids if not 0 <= token < vocabulary]
        if outside:
            raise UserError(
                f"{where} has token id {outside[0]}, but the model's vocabulary ends at {vocabulary - 1}; set "
                f"policy.tokenizer to the model's own."
            )


def _output(completion: Completion, how: Generation) -> dict[str, Any]:
    cut = cut_at_stop(completion, how.sampling.stop, how.decode_all)
    return {
        "token_ids": cut.token_ids,
        "token_logprobs": cut.token_logprobs,
        "text": how.decode(cut.token_ids),
        "finish_reason": cut.finish_reason,
    }


def cut_at_stop(completion: Completion, stop: Sequence[str], decode: Decode) -> Completion:
    """Cut an output after the token that completes the first stop string.

    Tokens are never split: the output includes the whole stop string and any further text of its last token. So ids and
    log-probabilities are cut at the same place, and the stored log-probability is that of the stored output.

    Args:
        completion: the output.
        stop: the stop strings.
        decode: token ids to the searched text, including special tokens, which stop strings may contain.

    Returns:
        The output, with finish reason "stop" where it was cut.
    """
    ids = completion.token_ids

    def has_stop(count: int) -> bool:
        text = decode(ids[:count])
        return any(one in text for one in stop)

    if not stop or not has_stop(len(ids)):
        return completion
    count = bisect_left(range(len(ids)), True, key=has_stop)  # the fewest tokens that contain a stop string
    return Completion(ids[:count], completion.token_logprobs[:count], "stop")
