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
            pa.field("finished_at", pa.float64(), nullable=False),
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
"""The key columns: of several rows with the same key, the one committed first counts."""


_TOTALS = [
    ("group_id", "count"),
    ("values", "sum"),
    ("nulls", "sum"),
    ("sum", "sum"),
    ("min", "min"),
    ("max", "max"),
]


@dataclass(frozen=True)
class ScorerSummary:
    """A scorer's values in a store.

    Attributes:
        name, digest: of the scorer; a store may hold several digests under one name.
        groups: number of groups that it has scored.
        nulls: number of outputs that it could not score.
        mean, min, max: over the values that are not null; None if all are.
    """

    name: str
    digest: str
    groups: int
    nulls: int
    mean: float | None
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
            columns[field.name] = _in_one_piece(rows[field.name], field.type)
    return pa.table([columns[name] for name in SUMMARY_SCHEMAS[kind].names], schema=SUMMARY_SCHEMAS[kind])


def scorer_summaries(rows: pa.Table) -> list[ScorerSummary]:
    """Return the scorers of some summary rows of SCORES, by name and digest."""
    for name in ("scorer", "scorer_digest"):
        rows = rows.set_column(rows.column_names.index(name), name, rows[name].cast(pa.string()))
    table = (
        rows.group_by(["scorer", "scorer_digest"])
        .aggregate(_TOTALS)
        .sort_by([("scorer", "ascending"), ("scorer_digest", "ascending")])
    )
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
        for row in table.to_pylist()
    ]


def _in_one_piece(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.Array:
    array = column.combine_chunks()
    return array if array.type == wanted else array.cast(wanted)


def _of_groups(rows: pa.Table) -> dict[str, pa.Array]:
    outputs = rows["outputs"]
    tokens = _lengths(pc.struct_field(pc.list_flatten(outputs), "token_ids"))
    lengths = _lengths(outputs)
    return {
        "outputs": pa.array(lengths.astype(np.int32)),
        "tokens": pa.array(_run_sums(tokens, lengths) + _lengths(rows["prompt_token_ids"])),
    }


def _of_scores(rows: pa.Table) -> dict[str, pa.Array]:
    lists = rows["values"]
    flat = pc.list_flatten(lists)
    lengths = _lengths(lists)
    known = flat.is_valid().to_numpy()
    values = _run_sums(known.astype(np.int32), lengths)
    numbers = flat.fill_null(0).to_numpy()
    return {
        "values": pa.array(values.astype(np.int32)),
        "nulls": pa.array((lengths - values).astype(np.int32)),
        "sum": pa.array(_run_sums(numbers.astype(np.float64), lengths)),
        "min": _extremes(np.minimum, np.where(known, numbers, np.inf), lengths, values),
        "max": _extremes(np.maximum, np.where(known, numbers, -np.inf), lengths, values),
    }


def _of_steps(rows: pa.Table) -> dict[str, pa.Array]:
    return {"groups": pa.array(_lengths(rows["group_ids"]).astype(np.int32))}


def _lengths(lists: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return pc.list_value_length(lists).to_numpy().astype(np.int64)


def _run_sums(values: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the sums of consecutive runs of `values`; runs may be empty."""
    if not len(values):
        return np.zeros(len(lengths), dtype=values.dtype)
    starts = np.cumsum(lengths) - lengths
    sums = np.add.reduceat(values, np.minimum(starts, len(values) - 1))
    return np.where(lengths > 0, sums, sums.dtype.type(0))


def _extremes(
    ufunc: np.ufunc,
    values: npt.NDArray[np.floating],
    lengths: npt.NDArray[np.int64],
    known: npt.NDArray[Any],
) -> pa.Array:
    starts = np.cumsum(lengths) - lengths
    if not len(values):
        return pa.nulls(len(lengths), pa.float32())
    found = ufunc.reduceat(values, np.minimum(starts, len(values) - 1)).astype(np.float32)
    return pa.array(found, mask=np.asarray(known == 0))
