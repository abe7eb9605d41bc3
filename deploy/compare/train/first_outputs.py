"""A store of the same groups with fewer outputs: what a method sees that was given a smaller n."""

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.schemas import GROUPS, SCORES
from brain_align.common.store.sample_store import SampleStore


def write_first_outputs(source: SampleStore, target: SampleStore, n: int) -> None:
    """Copy groups and scores to another store, each with its first n outputs alone.

    A group of fewer outputs is copied as it is. What was copied before is not copied again.
    """
    for batch in source.batches():
        ids = batch["group_id"].to_pylist()
        target.append_groups(_with_first(batch, "outputs", n, GROUPS))
        for facts in source.scorers():
            scored = [name for name in ids if source.has_score(name, facts.name)]
            if scored:
                rows = source.scores(scored, facts.name).combine_chunks().to_batches()[0]
                target.append_scores(_with_first(rows, "values", n, SCORES))


def _with_first(batch: pa.RecordBatch, column: str, n: int, schema: pa.Schema) -> pa.RecordBatch:
    place = batch.schema.get_field_index(column)
    first = pc.list_slice(batch[column], 0, n, return_fixed_size_list=False).cast(schema.field(column).type)
    return pa.RecordBatch.from_arrays(
        [first if index == place else array for index, array in enumerate(batch.columns)], schema=schema
    )
