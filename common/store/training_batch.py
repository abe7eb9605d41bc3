"""Training batches: GROUPS joined with their SCORES, as one optimiser step trains on them."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.scorers import CombinationSection
from brain_align.common.schemas import FLAGS, LOGPROBS, TOKEN_IDS, TRAIN_BATCH
from brain_align.common.store.overlay import Store
from brain_align.common.store.rewards import stored_rewards
from brain_align.common.store.table.summary_rows import run_sums

_GROUP_COLUMNS = ("group_id", "proposal_version", "prompt_token_ids", "gold_text", "outputs")


def training_batch(
    store: Store,
    group_ids: list[str],
    *,
    reward: str | CombinationSection,
    prior: str,
    proposal: str | None = None,
    gold: Callable[[str], list[int]] | None = None,
) -> pa.RecordBatch:
    """Join groups with their rewards and their prior and proposal log-probabilities, in the given order.

    Args:
        store: holds the groups and the scorers' values for them.
        group_ids: of the rows.
        reward: name of the scorer whose values are the rewards, or a combination of several scorers.
        prior: name of the scorer whose values are log p(y|x).
        proposal: name of the scorer whose values are log q'(y|x); None: the sampler's own.
        gold: maps a reference output's text to its token ids, if the objective needs them.

    Raises:
        KeyError: a group, or a scorer's values for it, is not in the store.
    """
    groups = store.groups(group_ids, _GROUP_COLUMNS).combine_chunks()
    outputs = groups["outputs"].combine_chunks()

    def logprobs(scorer: str) -> pa.ChunkedArray:
        return store.scores(group_ids, scorer, ["values"])["values"]

    flat = outputs.flatten()
    sampled = _relist(outputs, list_sums(flat.field("token_logprobs")), LOGPROBS)
    lists = {
        "output_token_ids": _relist(outputs, flat.field("token_ids"), TRAIN_BATCH.field("output_token_ids").type),
        "sampler_logprobs": sampled,
        "proposal_logprobs": sampled if proposal is None else logprobs(proposal),
        "prior_logprobs": logprobs(prior),
        "gold_token_ids": _gold_token_ids(groups["gold_text"], gold),
        "rewards": stored_rewards(store, group_ids, reward)["values"],
        "finished": _relist(outputs, pc.equal(flat.field("finish_reason"), "stop"), FLAGS),
    }
    columns = [lists[field.name] if field.name in lists else groups[field.name] for field in TRAIN_BATCH]
    arrays = [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=TRAIN_BATCH)


def _gold_token_ids(texts: pa.ChunkedArray, encode: Callable[[str], list[int]] | None) -> pa.Array:
    if encode is None:
        return pa.nulls(len(texts), TOKEN_IDS)
    return pa.array([None if text is None else encode(text) for text in texts.to_pylist()], TOKEN_IDS)


def of_another_run(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with version -1 throughout: its proposals are another run's, not versions of this one."""
    index = batch.schema.get_field_index("proposal_version")
    versions = pa.array(np.full(batch.num_rows, -1, dtype=np.int32))
    return batch.set_column(index, batch.schema.field(index), versions)


def _relist(outer: pa.ListArray, values: pa.Array, type_: pa.DataType) -> pa.ListArray:
    """Return lists with the lengths of `outer` over other values."""
    lengths = outer.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values).cast(type_)


def list_sums(lists: pa.ListArray) -> pa.Array:
    """Return the sum of each list; an empty one sums to 0 (an empty completion has probability 1)."""
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return pa.array(run_sums(values, lengths).astype(np.float32))
