"""What every scorer has in common: groups in, one annotation per group out."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import pyarrow as pa

from brain_align.common.schemas import SCORES, batch_from_rows

_FLOAT32_MAX = (2 - 2**-23) * 2.0**127

Group = dict[str, Any]
"""One GROUPS row as Python values (common/schemas.py)."""


class Scorer(Protocol):
    """Annotates groups with one value per output.

    Attributes:
        name: its name in the recipe and in SCORES.
        digest: of everything that its values depend on: two scorers of one digest give the same values.
    """

    name: str
    digest: str

    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """SCORES rows for GROUPS rows, one each, in their order.

        The values of a group depend on that group alone, not on the others in the batch, but for their rounding where
        a scorer was told to compute groups together. A value that could not be computed is null, and the row's `error`
        says why.
        """
        ...


@dataclass(frozen=True)
class Annotation:
    """What a scorer says about one group: a value per output, and one for gold where there is any."""

    values: list[float | None]
    gold_value: float | None = None
    errors: tuple[str, ...] = ()


def texts_of(group: Group) -> list[str]:
    """The texts of a group's outputs, and behind them that of gold where there is one."""
    gold = group["gold_text"]
    return [output["text"] for output in group["outputs"]] + ([] if gold is None else [gold])


def annotation_of_texts(group: Group, values: Sequence[float | None], errors: Iterable[str]) -> Annotation:
    """What the values of `texts_of` say about a group."""
    if group["gold_text"] is None:
        return Annotation(list(values), None, tuple(errors))
    return Annotation(list(values[:-1]), values[-1], tuple(errors))


def annotate(scorer: Scorer, batch: pa.RecordBatch, score_group: Callable[[Group], Annotation]) -> pa.RecordBatch:
    """Apply a function of one group to each group of a batch."""
    return scores_of(scorer, batch, [score_group(group) for group in batch.to_pylist()])


def scores_of(scorer: Scorer, batch: pa.RecordBatch, annotations: Sequence[Annotation]) -> pa.RecordBatch:
    """SCORES rows for the groups of a batch, from what a scorer says about each."""
    rows = [
        {
            "group_id": group_id,
            "scorer": scorer.name,
            "scorer_digest": scorer.digest,
            "values": annotation.values,
            "gold_value": annotation.gold_value,
            "error": "; ".join(annotation.errors) or None,
            "scored_at": time.time(),
        }
        for group_id, annotation in zip(batch["group_id"].to_pylist(), annotations, strict=True)
    ]
    return batch_from_rows(SCORES, rows)


def finite_or_null(values: Sequence[float | None], what: str) -> tuple[list[float | None], list[str]]:
    """Replace values that are not finite in float32 by None; returns all values, and an error for each replaced."""
    # NaN fails every comparison.
    kept = [value if value is not None and abs(value) <= _FLOAT32_MAX else None for value in values]
    errors = [
        f"{what} {index} has the value {value}"
        for index, (value, valid) in enumerate(zip(values, kept, strict=True))
        if valid is None
    ]
    return kept, errors


def numbers_or_null(
    result: object, count: int, who: str, what: str, *, nulls: bool = False
) -> tuple[list[float | None], list[str]]:
    """Values that somebody else's code gave: all null, unless they are as many numbers as were asked for.

    Args:
        result: what was given.
        count: how many values were asked for.
        who: gave them.
        what: a value is for.
        nulls: whether single values may be missing (None).

    Returns:
        The values, None where one is missing or not finite, and the errors.
    """
    nothing: list[float | None] = [None] * count
    if not isinstance(result, list | tuple):
        return nothing, [f"{who} returned a {type(result).__name__}, not a list of numbers"]
    if len(result) != count:
        return nothing, [f"{who} returned {len(result)} values for {count} outputs"]
    strange = [value for value in result if not isinstance(value, Real) and not (nulls and value is None)]
    if strange:
        return nothing, [f"{who} returned {strange[0]!r:.80}, which is no number"]
    return finite_or_null([None if value is None else _as_float(value) for value in result], what)


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer too large for any float
        return float("inf")
