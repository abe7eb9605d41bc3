"""GROUPS rows for texts that were not sampled in a run: files to score, texts to test scorers with."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from brain_align.common.requests import Prompt
from brain_align.common.schemas import GROUPS, batch_from_rows

NOBODY = ""  # the value of columns that name the sampler in groups of a run

_PROMPTS = 4
_OUTPUTS = (" I would say so.", " That depends on what you want.")
"""Outputs to try where the data has no references."""


def text_group(
    group_id: str,
    prompt: str,
    outputs: Sequence[str],
    *,
    prompt_token_ids: Sequence[int] = (),
    output_token_ids: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Make a GROUPS row of texts, without a gold output and with empty sampling columns.

    Only scorers of token ids need `prompt_token_ids` and `output_token_ids` (one list per output).
    """
    tokens = output_token_ids or [()] * len(outputs)
    return {
        "group_id": group_id,
        "prompt_id": group_id,
        "round": 0,
        "prompt_text": prompt,
        "prompt_token_ids": list(prompt_token_ids),
        "gold_text": None,
        "proposal_version": 0,
        "proposal_digest": NOBODY,
        "outputs": [
            {"token_ids": list(ids), "token_logprobs": [0.0] * len(ids), "text": text, "finish_reason": "stop"}
            for text, ids in zip(outputs, tokens, strict=True)
        ],
        "temperature": 1.0,
        "max_tokens": 0,
        "lease_id": NOBODY,
        "seed": 0,
        "sampler_id": NOBODY,
        "started_at": 0.0,
        "finished_at": 0.0,
    }


def trial_groups(prompts: Sequence[Prompt]) -> pa.RecordBatch:
    """Return groups of a few prompts, with their references as outputs where there are any."""
    tried = list(prompts)[:_PROMPTS]
    references = [prompt.gold_text for prompt in tried if prompt.gold_text is not None]
    rows = []
    for number, prompt in enumerate(tried):
        own = [] if prompt.gold_text is None else [prompt.gold_text]
        outputs = [*own, *(text for text in references if text not in own), *_OUTPUTS][: len(_OUTPUTS)]
        rows.append({**text_group(f"trial-{number}", prompt.text, outputs), "gold_text": prompt.gold_text})
    return batch_from_rows(GROUPS, rows)
