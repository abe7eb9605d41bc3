"""GROUPS rows for texts that were not sampled in a run: files to score, texts to test scorers with."""

from collections.abc import Sequence
from typing import Any

NOBODY = ""  # the value of columns that name the sampler in groups of a run


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
