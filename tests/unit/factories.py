"""Rows and recipes for tests, small and valid; a test says only what matters to it."""

from typing import Any

import pyarrow as pa

from brain_align.common.policies import Probe
from brain_align.common.schemas import GROUPS, SCORES, batch_from_rows

PROBE = Probe([1, 2], [3, 4], [-1.0, -2.0])


def output(token_ids: list[int], token_logprobs: list[float], text: str = "text") -> dict[str, Any]:
    return {"token_ids": token_ids, "token_logprobs": token_logprobs, "text": text, "finish_reason": "stop"}


def group(group_id: str, **changes: Any) -> dict[str, Any]:
    row = {
        "group_id": group_id,
        "prompt_id": f"prompt-{group_id}",
        "round": 0,
        "prompt_text": "a prompt",
        "prompt_token_ids": [5, 6, 7],
        "gold_text": "gold",
        "proposal_version": 0,
        "proposal_digest": "digest",
        "outputs": [output([1, 2], [-0.5, -0.25]), output([3], [-1.0])],
        "temperature": 1.0,
        "max_tokens": 4,
        "lease_id": "lease",
        "seed": 1,
        "sampler_id": "sampler-0",
        "started_at": 1.0,
        "finished_at": 2.0,
    }
    return {**row, **changes}


def groups(*ids: str, **changes: Any) -> pa.RecordBatch:
    return batch_from_rows(GROUPS, [group(group_id, **changes) for group_id in ids])


def scores(scorer: str, values: dict[str, list[float | None]], **changes: Any) -> pa.RecordBatch:
    rows = [
        {
            "group_id": group_id,
            "scorer": scorer,
            "scorer_digest": "digest",
            "values": row,
            "gold_value": 0.5,
            "error": None,
            "scored_at": 3.0,
            **changes,
        }
        for group_id, row in values.items()
    ]
    return batch_from_rows(SCORES, rows)


def step(number: int, group_ids: list[str], **changes: Any) -> dict[str, Any]:
    row = {
        "step": number,
        "round": 0,
        "group_ids": group_ids,
        "published_version": None,
        "metrics": {"loss": 1.5},
        "finished_at": 4.0,
    }
    return {**row, **changes}


def recipe_settings(**changes: Any) -> dict[str, Any]:
    settings = {
        "name": "test",
        "data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"},
        "policy": {"model": "policy"},
        "scorers": {"reward": {"kind": "tldr", "path": "reward"}},
    }
    return {**settings, **changes}
