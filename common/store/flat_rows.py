"""Stored groups as flat rows: one per output, with everything that is stored of it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.scorers import CombinationSection
from brain_align.common.errors import DamagedPartError
from brain_align.common.schemas import GROUPS, LOGPROBS, TOKEN_IDS
from brain_align.common.store.overlay import Store
from brain_align.common.store.rewards import stored_rewards
from brain_align.common.store.training_batch import list_sums

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
    """A converter of GROUPS batches into rows of outputs.

    Attributes:
        schema: columns of the group, of the output, and `score_NAME`, `gold_score_NAME`, `error_NAME` of each scorer;
            null where it has scored nothing. log p(y|x) is `score_prior`.
        dropped: always empty; the counterpart of `Pairs.dropped`.
    """

    def __init__(self, store: Store, scorers: Sequence[str]) -> None:
        self._store = store
        self._scorers = list(scorers)
        self._steps: dict[str, list[int]] = defaultdict(list)
        for row in store.steps():
            for group in row["group_ids"]:
                self._steps[group].append(row["step"])
        self.dropped: dict[str, int] = {}
        scored = [
            pa.field(f"{prefix}_{name}", type_)
            for name in self._scorers
            for prefix, type_ in (("score", pa.float32()), ("gold_score", pa.float32()), ("error", pa.string()))
        ]
        self.schema = pa.schema([*_OF_GROUP, *_OF_OUTPUT, *scored])

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return one row per output, in the order of groups and outputs."""
        parents = pc.list_parent_indices(batch["outputs"])
        outputs = pc.list_flatten(batch["outputs"])
        counts = pc.list_value_length(batch["outputs"]).to_numpy()
        starts = np.cumsum(counts) - counts
        ids = batch["group_id"].to_pylist()
        steps = pa.array([self._steps.get(group, []) for group in ids], pa.list_(pa.int64()))
        columns: list[Any] = [batch[field.name].take(parents) for field in _OF_GROUP]
        columns.append(pa.array(np.arange(len(outputs)) - starts[parents.to_numpy()], pa.int32()))
        columns += [outputs.field(name) for name in ("text", "token_ids", "token_logprobs", "finish_reason")]
        columns.append(list_sums(outputs.field("token_logprobs")))
        columns.append(steps.take(parents))
        for name in self._scorers:
            columns += self._scored(name, ids, counts, parents)
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _scored(self, name: str, ids: list[str], counts: Sequence[int], parents: pa.Array) -> list[pa.Array]:
        found = scores_of(self._store, ids, name)
        nothing: dict[str, Any] = {"gold_value": None, "error": None}
        rows = [found.get(group, nothing) for group in ids]
        values = values_by_output(found, ids, counts)
        gold = pa.array([row["gold_value"] for row in rows], pa.float32())
        errors = pa.array([row["error"] for row in rows], pa.string())
        return [pa.array(values, pa.float32()), gold.take(parents), errors.take(parents)]


def scores_of(store: Store, groups: list[str], scorer: str) -> dict[str, dict[str, Any]]:
    """Return a scorer's rows by group, for those of the groups that have one that can be read."""
    return _by_group(partial(store.scores, scorer=scorer), compress(groups, store.has_scores(groups, scorer)))


def rewards_of(store: Store, groups: list[str], reward: str | CombinationSection) -> dict[str, dict[str, Any]]:
    """Return rewards by group, for those of the groups that have them; rows of `stored_rewards`."""
    scorers = [reward] if isinstance(reward, str) else list(reward.weights)
    scored = compress(groups, np.logical_and.reduce([store.has_scores(groups, name) for name in scorers]))

    def read(ids: Sequence[str]) -> pa.Table:
        return stored_rewards(store, list(ids), reward).append_column("group_id", pa.array(ids))

    return _by_group(read, scored)


def _by_group(read: Callable[[Sequence[str]], pa.Table], group_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {row["group_id"]: row for table in readable(read, list(group_ids)) for row in table.to_pylist()}


def values_by_output(
    found: Mapping[str, Mapping[str, Any]], groups: Sequence[str], counts: Sequence[int]
) -> list[float | None]:
    """Return the `values` in the rows of `scores_of`, group after group; None for each output of a group without one.

    Args:
        found: the rows by group.
        groups: whose values are wanted.
        counts: outputs per group.
    """
    nothing: dict[str, Any] = {}
    rows = [found.get(group, nothing).get("values") for group in groups]
    return [value for row, count in zip(rows, counts, strict=True) for value in row or [None] * count]


def readable(read: Callable[[Sequence[str]], pa.Table], group_ids: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the rows of the groups whose parts are good, in the given order, in one or more tables.

    A store verifies a part when it first reads it. It refuses to read a damaged one, and names it in its `damaged`.
    """
    if not group_ids:
        return
    try:
        yield read(group_ids)
    except (DamagedPartError, KeyError):  # a group whose part was found damaged is in the store no longer
        if len(group_ids) == 1:
            return
        half = len(group_ids) // 2
        yield from readable(read, group_ids[:half])
        yield from readable(read, group_ids[half:])
