"""From a lease to committed-ready GROUPS rows, on any engine."""

import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from common.config.recipe import SamplingSection
from common.errors import UserError
from common.leases import Lease, Prompt
from common.policies import ProposalVersion
from common.schemas import GROUPS, batch_from_rows
from sampler.engine import Completion, Engine

Decode = Callable[[list[int]], str]


def generate_groups(
    engine: Engine,
    lease: Lease,
    proposal: ProposalVersion,
    sampling: SamplingSection,
    *,
    eos_token_id: int,
    decode: Decode,
    sampler_id: str,
) -> pa.RecordBatch:
    """Sample a lease: one GROUPS row for each of its prompts, in their order.

    Raises:
        UserError: a prompt has no token.
        PipelineError: the engine broke its contract.
    """
    for prompt in lease.prompts:
        if not prompt.token_ids:
            raise UserError(f"Prompt {prompt.prompt_id} of lease {lease.lease_id} is empty; remove it from the data.")
    started = time.time()
    completions = engine.generate(
        [list(prompt.token_ids) for prompt in lease.prompts],
        sampling,
        n=lease.n,
        eos_token_id=eos_token_id,
        seed=lease.seed,
        version=proposal.version,
        directory=proposal.path,
    )
    shared = {
        "round": lease.round,
        "proposal_version": proposal.version,
        "proposal_digest": proposal.digest,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "lease_id": lease.lease_id,
        "seed": lease.seed,
        "sampler_id": sampler_id,
        "started_at": started,
        "finished_at": time.time(),
    }
    rows = [
        {
            "group_id": group_id,
            **_prompt_columns(prompt),
            "outputs": [_output(one, decode) for one in outputs],
            **shared,
        }
        for group_id, prompt, outputs in zip(lease.group_ids, lease.prompts, completions, strict=True)
    ]
    return batch_from_rows(GROUPS, rows)


def _prompt_columns(prompt: Prompt) -> dict[str, Any]:
    return {
        "prompt_id": prompt.prompt_id,
        "prompt_text": prompt.text,
        "prompt_token_ids": list(prompt.token_ids),
        "gold_text": prompt.gold_text,
    }


def _output(completion: Completion, decode: Decode) -> dict[str, Any]:
    return {
        "token_ids": completion.token_ids,
        "token_logprobs": completion.token_logprobs,
        "text": decode(completion.token_ids),
        "finish_reason": completion.finish_reason,
    }
