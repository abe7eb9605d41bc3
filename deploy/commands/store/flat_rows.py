"""Stored groups as flat rows, one an output, with everything that is known of it."""

from collections.abc import Sequence
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.schemas import GROUPS, LOGPROBS, TOKEN_IDS
from brain_align.common.store.overlay import Store
from brain_align.common.store.training_batch import list_sums
from brain_align.deploy.commands.store.damage import readable

_OF_GROUP = [field for field in GROUPS if field.name != "outputs"]
_OF_OUTPUT = [
    pa.field("output", pa.int32()),  # its place among the n of its group
    pa.field("text", pa.string()),
    pa.field("token_ids", TOKEN_IDS),
    pa.field("token_logprobs", LOGPROBS),
    pa.field("finish_reason", pa.string()),
    pa.field("proposal_logprob", pa.float32()),  # log q'(y|x)
    pa.field("trained_steps", pa.list_(pa.int64())),  # empty where it never trained
]


class FlatRows:
    """Turns GROUPS batches into rows of outputs.

    Attributes:
        schema: columns of the group, of the output, and `score_NAME`, `gold_score_NAME`, `error_NAME` of each scorer;
            null where a scorer has said nothing. log p(y|x) is `score_prior`.
        dropped: nothing is; the counterpart of `Pairs.dropped`.
    """

    def __init__(self, store: Store, scorers: Sequence[str]) -> None:
        self._store = store
        self._scorers = list(scorers)
        self._steps: dict[str, list[int]] = {}
        for row in store.steps():
            for group in row["group_ids"]:
                self._steps.setdefault(group, []).append(row["step"])
        self.dropped: dict[str, int] = {}
        scored = [field for name in self._scorers for field in _scorer_fields(name)]
        self.schema = pa.schema([*_OF_GROUP, *_OF_OUTPUT, *scored])

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """One row an output, in the order of groups and outputs."""
        parents = pc.list_parent_indices(batch["outputs"])
        outputs = pc.list_flatten(batch["outputs"])
        starts = np.concatenate([[0], np.cumsum(pc.list_value_length(batch["outputs"]).to_numpy())])[:-1]
        ids = batch["group_id"].to_pylist()
        steps = pa.array([self._steps.get(group, []) for group in ids], pa.list_(pa.int64()))
        columns: list[Any] = [batch[field.name].take(parents) for field in _OF_GROUP]
        columns.append(pa.array(np.arange(len(outputs)) - starts[parents.to_numpy()], pa.int32()))
        columns += [outputs.field(name) for name in ("text", "token_ids", "token_logprobs", "finish_reason")]
        columns.append(list_sums(outputs.field("token_logprobs")))
        columns.append(steps.take(parents))
        counts = pc.list_value_length(batch["outputs"]).to_pylist()
        for name in self._scorers:
            columns += self._scored(name, ids, counts, parents)
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _scored(self, name: str, ids: list[str], counts: list[int], parents: pa.Array) -> list[pa.Array]:
        found = scores_of(self._store, ids, name)
        nothing: dict[str, Any] = {"values": None, "gold_value": None, "error": None}
        rows = [found.get(group, nothing) for group in ids]
        values = [value for row, count in zip(rows, counts, strict=True) for value in row["values"] or [None] * count]
        gold = pa.array([row["gold_value"] for row in rows], pa.float32())
        errors = pa.array([row["error"] for row in rows], pa.string())
        return [pa.array(values, pa.float32()), gold.take(parents), errors.take(parents)]


def scores_of(store: Store, groups: list[str], scorer: str) -> dict[str, dict[str, Any]]:
    """A scorer's rows for those of the groups that have one that can be read, by group."""
    scored = list(compress(groups, store.has_scores(groups, scorer)))
    tables = readable(partial(store.scores, scorer=scorer), scored)
    return {row["group_id"]: row for table in tables for row in table.to_pylist()}


def _scorer_fields(name: str) -> list[pa.Field]:
    return [
        pa.field(f"score_{name}", pa.float32()),
        pa.field(f"gold_score_{name}", pa.float32()),
        pa.field(f"error_{name}", pa.string()),
    ]
