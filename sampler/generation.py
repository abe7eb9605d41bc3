"""From a lease to GROUPS rows that are ready to be committed."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from brain_align.common.config.sampling import SamplingSection
from brain_align.common.errors import UserError
from brain_align.common.requests import Prompt, SampleRequest
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.sampler.engine.data import Completion
from brain_align.sampler.engine.engine import Engine
from brain_align.sampler.stopping import Decode, cut_at_stop
from brain_align.sampler.weights.versions import Use


@dataclass(frozen=True)
class Generation:
    """How a sampler samples, whatever the lease.

    Attributes:
        sampling: the distribution, and the length.
        eos_token_id: ends an output.
        decode: token ids to text, without special tokens.
        decode_all: the same with them; stop strings are looked for in it.
        sampler_id: the sampler's name.
    """

    sampling: SamplingSection
    eos_token_id: int
    decode: Decode
    decode_all: Decode
    sampler_id: str


async def generate_groups(
    engine: Engine, lease: SampleRequest, used: Use, how: Generation
) -> AsyncGenerator[pa.RecordBatch]:
    """Sample a lease: one GROUPS row for each of its prompts, in the order in which they are finished.

    Raises:
        PipelineError: the engine broke its contract, or died.
    """
    started = time.time()
    finished = engine.sample(
        [prompt.token_ids for prompt in lease.prompts],
        how.sampling,
        n=lease.n,
        eos_token_id=how.eos_token_id,
        adapter=used.adapter,
        seed=lease.seed if lease.alone else None,
    )
    shared = {
        "round": lease.round,
        "proposal_version": used.proposal.version,
        "proposal_digest": used.proposal.digest,
        "temperature": how.sampling.temperature,
        "max_tokens": how.sampling.max_tokens,
        "lease_id": lease.lease_id,
        "seed": lease.seed,
        "sampler_id": how.sampler_id,
        "started_at": started,
    }
    async with aclosing(finished):
        async for index, completions in finished:
            row = {
                "group_id": lease.group_ids[index],
                **_prompt_columns(lease.prompts[index]),
                "outputs": [_output(one, how) for one in completions],
                **shared,
                "finished_at": time.time(),
            }
            yield batch_from_rows(GROUPS, [row])


def check_prompts(lease: SampleRequest, *, vocabulary: int, max_prompt_tokens: int) -> None:
    """Refuse what the model cannot be asked for, before anything of the lease is sampled.

    Args:
        lease: what is asked for.
        vocabulary: token ids are below it.
        max_prompt_tokens: leaves room for the output in the engine's window.

    Raises:
        UserError: a prompt is empty or too long, or has ids that the model does not know.
    """
    for prompt in lease.prompts:
        where = f"Prompt {prompt.prompt_id} of lease {lease.lease_id}"
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


def _prompt_columns(prompt: Prompt) -> dict[str, Any]:
    return {
        "prompt_id": prompt.prompt_id,
        "prompt_text": prompt.text,
        "prompt_token_ids": list(prompt.token_ids),
        "gold_text": prompt.gold_text,
    }


def _output(completion: Completion, how: Generation) -> dict[str, Any]:
    cut = cut_at_stop(completion, how.sampling.stop, how.decode_all)
    return {
        "token_ids": cut.token_ids,
        "token_logprobs": cut.token_logprobs,
        "text": how.decode(cut.token_ids),
        "finish_reason": cut.finish_reason,
    }
