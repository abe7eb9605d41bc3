"""What an append adds to the rows that a store has: rows with new keys, and values where a scorer gave null before."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from brain_align.common.schemas import KINDS, batch_from_rows
from brain_align.common.store.table.catalogue import Catalogue
from brain_align.common.store.table.keys import Rows
from brain_align.common.store.table.summary_rows import KEYS


class NewRows(NamedTuple):
    """The rows of a batch that an append writes, and the numbers of those that they take the place of."""

    batch: pa.RecordBatch
    replaced: Rows


def new_rows(catalogue: Catalogue, batch: pa.RecordBatch) -> NewRows:
    """Return the rows of a batch that are new.

    A row whose key is known is not, unless it has a value where the known row has null. It then gets the values that
    are known, so that no value ever changes.

    Raises:
        DamagedPartError: the part with a known row that has nulls is damaged.
    """
    columns = [batch[name] for name in KEYS[catalogue.kind]]
    keys = list(zip(*(column.to_pylist() for column in columns), strict=True))
    first = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))  # of several equal ones in the batch
    found = catalogue.find(*columns)
    fresh = [row for row, key in enumerate(keys) if found[row] < 0 and first[key] == row]
    added = batch if len(fresh) == batch.num_rows else batch.take(pa.array(fresh, pa.int64()))
    known = np.array([row for row, key in enumerate(keys) if found[row] >= 0 and first[key] == row], dtype=np.int64)
    with_nulls = known[catalogue.rows.nulls(found[known]) > 0]
    rows, replaced = [], []
    if len(with_nulls):
        numbers, stored = found[with_nulls], catalogue.take(found[with_nulls]).to_pylist()
        asked_again = batch.take(pa.array(with_nulls)).to_pylist()
        for number, old, new in zip(numbers, stored, asked_again, strict=True):
            if (row := _filled(old, new)) is not None:
                rows.append(row)
                replaced.append(number)
    if rows:
        added = pa.concat_batches([added, batch_from_rows(KINDS[catalogue.kind], rows)])
    return NewRows(added, np.array(replaced, dtype=np.int64))


def _filled(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any] | None:
    """Return a stored SCORES row with values of a new one where it has null; None if that adds none."""
    if len(old["values"]) != len(new["values"]):
        return None
    values = [now if before is None else before for before, now in zip(old["values"], new["values"], strict=True)]
    if values == old["values"]:
        return None
    gold = new["gold_value"] if old["gold_value"] is None else old["gold_value"]
    return {**new, "values": values, "gold_value": gold, "error": new["error"] if None in values else None}
