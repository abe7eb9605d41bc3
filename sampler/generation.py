"""Generation of one request: from prompts to GROUPS rows that are ready to be committed."""

import time
from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from brain_align.common.config.sampling import SamplingSection
from brain_align.common.errors import UserError
from brain_align.common.nn.continuation_text import ContinuationText, Decode
from brain_align.common.requests import SampleRequest
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.sampler.engine.data import Completion
from brain_align.sampler.engine.engine import Engine
from brain_align.sampler.weights.versions import Use

_GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
_NOT_TEXT = "\ufffd"  # what decoders write for bytes that do not form a character


@dataclass(frozen=True)
class Generation:
    """A sampler's settings, which are the same for all requests."""

    sampling: SamplingSection
    end_tokens: Sequence[int]  # each ends an output
    tokenizer: PreTrainedTokenizerBase
    sampler_id: str


async def generate_groups(
    engine: Engine, request: SampleRequest, used: Use, how: Generation
) -> AsyncGenerator[pa.RecordBatch]:
    """Sample a request; yield one GROUPS row per prompt, in the order in which they finish.

    Raises:
        PipelineError: the engine broke its contract, or died.
    """
    started = time.time()
    sampling = how.sampling.model_copy(update=_GREEDY) if request.greedy else how.sampling
    finished = engine.sample(
        [prompt.token_ids for prompt in request.prompts],
        sampling,
        n=request.n,
        end_tokens=how.end_tokens,
        adapter=used.adapter,
        seed=request.seed if request.alone else None,
    )
    shared = {
        "round": request.round,
        "proposal_version": used.proposal.version,
        "proposal_digest": used.proposal.digest,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
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
                "outputs": _outputs(prompt.token_ids, completions, how),
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


def _outputs(prompt: Sequence[int], completions: Sequence[Completion], how: Generation) -> list[dict[str, Any]]:
    text = ContinuationText(how.tokenizer, prompt)
    searched = [text, ContinuationText(how.tokenizer, prompt, special_tokens=True)] if how.sampling.stop else []
    return [_output(completion, how.sampling.stop, text, searched) for completion in completions]


def _output(completion: Completion, stop: Sequence[str], text: Decode, searched: Sequence[Decode]) -> dict[str, Any]:
    cut = cut_at_stop(completion, stop, searched)
    # The token that ends an output is not a part of its text, also where the tokenizer does not call it special.
    by_eos = cut is completion and completion.finish_reason == "stop"
    return {
        "token_ids": cut.token_ids,
        "token_logprobs": cut.token_logprobs,
        "text": text(cut.token_ids[:-1] if by_eos else cut.token_ids),
        "finish_reason": cut.finish_reason,
    }


def cut_at_stop(completion: Completion, stop: Sequence[str], texts: Sequence[Decode]) -> Completion:
    """Cut an output after the token that completes the first stop string.

    Tokens are never split: the output includes the whole stop string and any further text of its last token. So ids and
    log-probabilities are cut at the same place, and the stored log-probability is that of the stored output.

    Args:
        completion: the output.
        stop: the stop strings.
        texts: token ids to the searched texts: the stored one, and the one with special tokens, which stop strings may
            contain.

    Returns:
        The output, with finish reason "stop" where it was cut; the same object where it was not.
    """
    if not stop:
        return completion
    ids = completion.token_ids

    def has_stop(count: int) -> bool:
        return any(one in text for text in (decode(ids[:count]) for decode in texts) for one in stop)

    if any(_NOT_TEXT in decode(ids) for decode in texts):
        # Bytes that are not text may undo characters before them, and so a stop string that was complete already.
        count = next((count for count in range(1, len(ids) + 1) if has_stop(count)), None)
    else:
        count = bisect_left(range(len(ids)), True, key=has_stop) if has_stop(len(ids)) else None
    if count is None:
        return completion
    return Completion(ids[:count], completion.token_logprobs[:count], "stop")
