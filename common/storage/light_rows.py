"""The light side of a row: what is asked of every row of a store without reading its tokens.

One light row for each row of a part. Light rows are what the index files keep and what is held in memory.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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


def light_rows(kind: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The light rows of one batch of a part."""
    columns = {"groups": _of_groups, "scores": _of_scores, "steps": _of_steps}[kind](batch)
    schema = LIGHT[kind]
    arrays = [columns[field.name] if field.name in columns else batch[field.name] for field in schema]
    typed = [
        array if array.type == field.type else array.cast(field.type)
        for array, field in zip(arrays, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(typed, schema=schema)


def _of_groups(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    outputs = batch["outputs"]
    tokens = _lengths(pc.struct_field(outputs.flatten(), "token_ids"))
    sums = _run_sums(tokens.astype(np.int64), _lengths(outputs))
    return {
        "outputs": pa.array(_lengths(outputs).astype(np.int32)),
        "tokens": pa.array(sums + _lengths(batch["prompt_token_ids"])),
    }


def _of_scores(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    lists = batch["values"]
    flat = lists.flatten()
    lengths = _lengths(lists)
    known = flat.is_valid().to_numpy(zero_copy_only=False)
    values = _run_sums(known.astype(np.int32), lengths)
    numbers = flat.fill_null(0).to_numpy(zero_copy_only=False)
    return {
        "values": pa.array(values.astype(np.int32)),
        "nulls": pa.array((lengths - values).astype(np.int32)),
        "sum": pa.array(_run_sums(numbers.astype(np.float64), lengths)),
        "min": _extremes(np.minimum, np.where(known, numbers, np.inf), lengths, values),
        "max": _extremes(np.maximum, np.where(known, numbers, -np.inf), lengths, values),
    }


def _of_steps(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    return {"groups": pa.array(_lengths(batch["group_ids"]).astype(np.int32))}


def _lengths(lists: pa.ListArray) -> npt.NDArray[np.int64]:
    return lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)


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
