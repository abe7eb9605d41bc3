"""The rows that cross from one part of the system to another (docs/architecture.md, "Rows").

One GROUPS row is one *group*: a prompt with its n outputs, all drawn from one proposal version.

    sampler   -> GROUPS       -> store, scorer, learner
    scorer    -> SCORES       -> store, learner
    conductor -> TRAIN_BATCH  -> learner      (GROUPS joined with the SCORES that one step needs)
    learner   -> STEPS        -> store
"""

from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 3
"""The number of the store's format that stands in its files (docs/store.md)."""

PRIOR = "prior"
"""The scorer name of log p(y|x) in SCORES."""

PROPOSAL = "proposal"
"""The scorer name of log q'(y|x) in SCORES where it is computed again with the learner's numerics."""

HUMAN = "human"
"""The scorer name of human preferences in SCORES: 1 for the chosen output, 0 for the other."""

TOKEN_IDS = pa.list_(pa.int32())
LOGPROBS = pa.list_(pa.float32())
FLAGS = pa.list_(pa.bool_())

OUTPUT = pa.struct(
    [
        pa.field("token_ids", TOKEN_IDS, nullable=False),  # EOS included only if it was generated
        pa.field("token_logprobs", LOGPROBS, nullable=False),  # nats, of the distribution sampled from
        pa.field("text", pa.string(), nullable=False),  # decoded without special tokens
        pa.field("finish_reason", pa.string(), nullable=False),  # "stop" (EOS was generated) or "length"
    ]
)

GROUPS = pa.schema(
    [
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("prompt_text", pa.string(), nullable=False),
        pa.field("prompt_token_ids", TOKEN_IDS, nullable=False),
        pa.field("gold_text", pa.string()),
        pa.field("proposal_version", pa.int32(), nullable=False),
        pa.field("proposal_digest", pa.string(), nullable=False),
        pa.field("outputs", pa.list_(OUTPUT), nullable=False),
        pa.field("temperature", pa.float32(), nullable=False),
        pa.field("max_tokens", pa.int32(), nullable=False),
        pa.field("lease_id", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("sampler_id", pa.string(), nullable=False),
        pa.field("started_at", pa.float64(), nullable=False),  # seconds since the epoch
        pa.field("finished_at", pa.float64(), nullable=False),
    ]
)

SCORES = pa.schema(
    [
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("scorer", pa.string(), nullable=False),
        pa.field("scorer_digest", pa.string(), nullable=False),
        pa.field("values", LOGPROBS, nullable=False),  # one per output; null where it could not be computed
        pa.field("gold_value", pa.float32()),
        pa.field("error", pa.string()),
        pa.field("scored_at", pa.float64(), nullable=False),
    ]
)

STEPS = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("group_ids", pa.list_(pa.string()), nullable=False),
        pa.field("published_version", pa.int32()),  # the proposal version that this step ended, if it did
        pa.field("metrics", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("finished_at", pa.float64(), nullable=False),
    ]
)

TRAIN_BATCH = pa.schema(
    [
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("proposal_version", pa.int32(), nullable=False),
        pa.field("prompt_token_ids", TOKEN_IDS, nullable=False),
        pa.field("output_token_ids", pa.list_(TOKEN_IDS), nullable=False),
        pa.field("sampler_logprobs", LOGPROBS, nullable=False),  # log q'(y|x) as sampled: sums over the completion
        pa.field("proposal_logprobs", LOGPROBS, nullable=False),  # the same, or computed again; null where missing
        pa.field("prior_logprobs", LOGPROBS, nullable=False),  # log p(y|x); null where missing
        pa.field("rewards", LOGPROBS, nullable=False),  # null where missing
        pa.field("finished", FLAGS, nullable=False),  # false: cut at max_tokens
        pa.field("gold_token_ids", TOKEN_IDS),  # null where there is no gold output, or the objective needs none
    ]
)

KINDS = {"groups": GROUPS, "scores": SCORES, "steps": STEPS}
"""The three kinds of parts in a sample store."""


def batch_from_rows(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.RecordBatch:
    """Build a record batch of exactly `schema` from Python rows.

    Raises:
        pa.ArrowInvalid, pa.ArrowTypeError: a row lacks a required field or has a value of the wrong type.
        KeyError: a row lacks a column altogether.
    """
    arrays = [pa.array([row[field.name] for row in rows], type=field.type) for field in schema]
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    for field, column in zip(schema, batch.columns, strict=True):
        if not field.nullable and column.null_count:
            raise pa.ArrowInvalid(f"column {field.name!r} must not be null")
    return batch
