"""What every scorer has in common: groups in, one annotation per group out."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from common.schemas import SCORES, batch_from_rows

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

        The values of a group depend on that group alone, not on the others in the batch. A value that could
        not be computed is null, and the row's `error` says why.
        """
        ...


@dataclass(frozen=True)
class Annotation:
    """What a scorer says about one group: a value per output, and one for gold where there is any."""

    values: list[float | None]
    gold_value: float | None = None
    errors: tuple[str, ...] = ()


def annotate(scorer: Scorer, batch: pa.RecordBatch, score_group: Callable[[Group], Annotation]) -> pa.RecordBatch:
    """Apply a function of one group to each group of a batch."""
    rows = []
    for group in batch.to_pylist():
        annotation = score_group(group)
        rows.append(
            {
                "group_id": group["group_id"],
                "scorer": scorer.name,
                "scorer_digest": scorer.digest,
                "values": annotation.values,
                "gold_value": annotation.gold_value,
                "error": "; ".join(annotation.errors) or None,
                "scored_at": time.time(),
            }
        )
    return batch_from_rows(SCORES, rows)


def finite_or_null(values: list[float], what: str) -> tuple[list[float | None], list[str]]:
    """Replace values that are not finite in float32 by None; returns all values, and an error a None."""
    kept = [value if abs(value) <= _FLOAT32_MAX else None for value in values]  # NaN fails every comparison
    errors = [
        f"{what} {index} has the value {value}"
        for index, (value, valid) in enumerate(zip(values, kept, strict=True))
        if valid is None
    ]
    return kept, errors
