"""The light side of a row: what is asked of every row of a store without reading its tokens.

One light row for each row of a part. Light rows are what the index files keep and what is held in memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.schemas import KINDS

_NAME = pa.dictionary(pa.int32(), pa.string())

LIGHT = {
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
            pa.field("min", pa.float32()),  # null where all values are
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
"""Which columns name a row: of two rows with the same key, the one committed first counts."""


def light_rows(kind: str, batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """The light rows of one or more batches of parts, in one piece.

    It costs about the same for one small batch as for many: a few dozen calls into numpy and Arrow.
    """
    rows = pa.Table.from_batches(batches, schema=KINDS[kind])
    columns = {"groups": _of_groups, "scores": _of_scores, "steps": _of_steps}[kind](rows)
    for field in LIGHT[kind]:
        if field.name not in columns:
            columns[field.name] = _in_one_piece(rows[field.name], field.type)
    return pa.table([columns[name] for name in LIGHT[kind].names], schema=LIGHT[kind])


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
    """The sums of consecutive runs of `values`, which may be empty."""
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
