"""Rows for the benchmark of the sample store: made quickly, of the sizes that matter."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from brain_align.common.schemas import GROUPS, OUTPUT, SCORES

_WORDS = "the cat sat on the mat and the dog looked at it as if it had never seen a cat before that day, and so on and "


def ids(first: int, count: int) -> list[str]:
    """Group ids as digests are: 32 hexadecimal digits, in no order."""
    return [f"{(number * 0x9E3779B97F4A7C15) % 2**64:016x}{number:016x}" for number in range(first, first + count)]


def groups(group_ids: Sequence[str], n: int, tokens: int, round_: int = 0) -> pa.RecordBatch:
    """One lease: for each id a prompt of 100 tokens with n outputs of so many tokens and about 4 letters a token."""
    rows, outputs = len(group_ids), len(group_ids) * n
    random = np.random.default_rng(round_)
    lists = pa.array(np.arange(outputs + 1, dtype=np.int32) * tokens)
    fields = [
        pa.ListArray.from_arrays(lists, pa.array(random.integers(0, 32000, outputs * tokens, dtype=np.int32))),
        pa.ListArray.from_arrays(lists, pa.array(-random.random(outputs * tokens, dtype=np.float32))),
        pa.array([(_WORDS * 8)[: 4 * tokens]] * outputs),
        pa.array(["stop"] * outputs),
    ]
    per_prompt = pa.array(np.arange(rows + 1, dtype=np.int32) * n)
    flat = pa.StructArray.from_arrays(fields, fields=list(OUTPUT))
    prompt = [int(token) for token in random.integers(0, 32000, 100)]
    constant = {
        "round": round_,
        "prompt_text": (_WORDS * 8)[:400],
        "prompt_token_ids": prompt if tokens > 8 else prompt[:4],
        "gold_text": None,
        "proposal_version": round_,
        "proposal_digest": "d" * 32,
        "temperature": 1.0,
        "max_tokens": tokens,
        "lease_id": f"train-{round_:04d}-0000",
        "seed": 1,
        "sampler_id": "sampler-0",
        "started_at": 1.0,
        "finished_at": 2.0,
    }
    columns = {
        "group_id": pa.array(group_ids),
        "prompt_id": pa.array([name[16:] for name in group_ids]),
        "outputs": pa.ListArray.from_arrays(per_prompt, flat).cast(GROUPS.field("outputs").type),
        **{name: pa.array([value] * rows, type=GROUPS.field(name).type) for name, value in constant.items()},
    }
    return pa.RecordBatch.from_arrays([columns[field.name] for field in GROUPS], schema=GROUPS)


def scores(group_ids: Sequence[str], scorer: str, n: int) -> pa.RecordBatch:
    """One scorer's values for one lease."""
    rows = len(group_ids)
    values = np.random.default_rng(len(scorer)).random(rows * n, dtype=np.float32)
    constant = {"scorer": scorer, "scorer_digest": "d" * 32, "gold_value": 0.5, "error": None, "scored_at": 3.0}
    columns = {
        "group_id": pa.array(group_ids),
        "values": pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * n), pa.array(values)),
        **{name: pa.array([value] * rows, type=SCORES.field(name).type) for name, value in constant.items()},
    }
    return pa.RecordBatch.from_arrays([columns[field.name] for field in SCORES], schema=SCORES)
