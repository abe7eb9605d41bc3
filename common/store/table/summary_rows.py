"""Summary rows: the properties of each row that can be asked for without reading its tokens.

There is one summary row per row of a part. Index files keep them on disk, and every opening of a store in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.schemas import KINDS

_NAME = pa.dictionary(pa.int32(), pa.string())

SUMMARY_SCHEMAS = {
    "groups": pa.schema(
        [
            pa.field("group_id", pa.string(), nullable=False),
            pa.field("prompt_id", pa.string(), nullable=False),
            pa.field("round", pa.int32(), nullable=False),
            pa.field("proposal_version", pa.int32(), nullable=False),
            pa.field("outputs", pa.int32(), nullable=False),  # number of outputs
            pa.field("tokens", pa.int64(), nullable=False),  # of the prompt and all outputs
            pa.field("started_at", pa.float64(), nullable=False),
            pa.field("finished_at", pa.float64(), nullable=False),  # as started_at, seconds since the epoch
        ]
    ),
    "scores": pa.schema(
        [
            pa.field("group_id", pa.string(), nullable=False),
            pa.field("scorer", _NAME, nullable=False),
            pa.field("scorer_digest", _NAME, nullable=False),
            pa.field("values", pa.int32(), nullable=False),  # number of values that are not null
            pa.field("nulls", pa.int32(), nullable=False),
            pa.field("sum", pa.float64(), nullable=False),
            pa.field("min", pa.float32()),  # null if all values are
            pa.field("max", pa.float32()),
        ]
    ),
    "steps": pa.schema(
        [
            pa.field("step", pa.int64(), nullable=False),
            pa.field("groups", pa.int32(), nullable=False),  # number of groups that trained it
        ]
    ),
}

KEYS = {"groups": ("group_id",), "scores": ("group_id", "scorer"), "steps": ("step",)}
"""The key columns: of several rows with the same key one counts (`RowIndex`)."""

_TOTALS = [("group_id", "count"), ("values", "sum"), ("nulls", "sum"), ("sum", "sum"), ("min", "min"), ("max", "max")]


@dataclass(frozen=True)
class ScorerSummary:
    """A scorer's values in a store, which may hold several digests under one name."""

    name: str
    digest: str
    groups: int  # number of groups that it has scored
    nulls: int  # number of outputs that it could not score
    mean: float | None  # as min and max, over the values that are not null; None if all are
    min: float | None
    max: float | None


def summary_rows(kind: str, batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """Return the summary rows of one or more batches of parts as a table with one chunk.

    The cost is about the same for one small batch as for many: a few dozen calls into numpy and Arrow.
    """
    rows = pa.Table.from_batches(batches, schema=KINDS[kind])
    columns = {"groups": _of_groups, "scores": _of_scores, "steps": _of_steps}[kind](rows)
    for field in SUMMARY_SCHEMAS[kind]:
        if field.name not in columns:
            columns[field.name] = rows[field.name].combine_chunks().cast(field.type)
    return pa.table([columns[name] for name in SUMMARY_SCHEMAS[kind].names], schema=SUMMARY_SCHEMAS[kind])


def scorer_summaries(rows: pa.Table) -> list[ScorerSummary]:
    """Return the scorers of some summary rows of SCORES, by name and digest."""
    for name in ("scorer", "scorer_digest"):
        rows = rows.set_column(rows.column_names.index(name), name, rows[name].cast(pa.string()))
    table = rows.group_by(["scorer", "scorer_digest"]).aggregate(_TOTALS)
    return [
        ScorerSummary(
            name=row["scorer"],
            digest=row["scorer_digest"],
            groups=row["group_id_count"],
            nulls=row["nulls_sum"],
            mean=row["sum_sum"] / row["values_sum"] if row["values_sum"] else None,
            min=row["min_min"],
            max=row["max_max"],
        )
        for row in table.sort_by([("scorer", "ascending"), ("scorer_digest", "ascending")]).to_pylist()
    ]


def _of_groups(rows: pa.Table) -> dict[str, pa.Array]:
    outputs = rows["outputs"]
    tokens = _lengths(pc.struct_field(pc.list_flatten(outputs), "token_ids"))
    lengths = _lengths(outputs)
    return {
        "outputs": pa.array(lengths.astype(np.int32)),
        "tokens": pa.array(run_sums(tokens, lengths) + _lengths(rows["prompt_token_ids"])),
    }


def _of_scores(rows: pa.Table) -> dict[str, pa.Array]:
    lists = rows["values"]
    flat = pc.list_flatten(lists)
    lengths = _lengths(lists)
    known = flat.is_valid().to_numpy()
    values = run_sums(known.astype(np.int32), lengths)
    numbers = flat.fill_null(0).to_numpy()
    low = _reduced(np.minimum, np.where(known, numbers, np.inf), lengths)
    high = _reduced(np.maximum, np.where(known, numbers, -np.inf), lengths)
    return {
        "values": pa.array(values.astype(np.int32)),
        "nulls": pa.array((lengths - values).astype(np.int32)),
        "sum": pa.array(run_sums(numbers.astype(np.float64), lengths)),
        "min": pa.array(low.astype(np.float32), mask=values == 0),
        "max": pa.array(high.astype(np.float32), mask=values == 0),
    }


def _of_steps(rows: pa.Table) -> dict[str, pa.Array]:
    return {"groups": pa.array(_lengths(rows["group_ids"]).astype(np.int32))}


def _lengths(lists: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return pc.list_value_length(lists).to_numpy().astype(np.int64)


def run_sums(values: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the sums of consecutive runs of values; runs may be empty.

    Args:
        values: the runs, one after the other.  # [sum of lengths]
        lengths: of the runs.  # [runs]
    """
    sums = _reduced(np.add, values, lengths)
    return np.where(lengths > 0, sums, sums.dtype.type(0))


def _reduced(ufunc: np.ufunc, values: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Reduce each of consecutive runs of values; an empty run gets any number."""
    if not len(values):
        return np.zeros(len(lengths), dtype=values.dtype)
    starts = np.cumsum(lengths) - lengths
    return ufunc.reduceat(values, np.minimum(starts, len(values) - 1))
