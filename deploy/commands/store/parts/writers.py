"""Writers of rows to files, batch by batch; each returns the number of rows."""

import importlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq

from brain_align.common.errors import UserError

_ROW_GROUP = 16384  # rows; a store's parts are too small to read parquet from efficiently


def write_jsonl(path: Path, _schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write one JSON object per line."""
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for batch in batches:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
            count += batch.num_rows
    return count


def joined(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Join batches into tables of at least `rows` rows, but for the last."""
    held: list[pa.RecordBatch] = []
    waiting = 0
    for batch in batches:
        held.append(batch)
        waiting += batch.num_rows
        if waiting >= rows:
            yield pa.Table.from_batches(held)
            held, waiting = [], 0
    if held:
        yield pa.Table.from_batches(held)


def write_parquet(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write one parquet file."""
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for table in joined(batches, _ROW_GROUP):
            writer.write_table(table)
            count += table.num_rows
    return count


def write_dataset(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write a directory that `datasets.load_from_disk` opens."""
    datasets = import_datasets()
    path.mkdir()
    scratch = path / ".scratch"
    scratch.mkdir()
    count = write_parquet(scratch / "rows.parquet", schema, batches)
    was_enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # one is shown already
    try:
        rows = datasets.Dataset.from_parquet(str(scratch / "rows.parquet"), cache_dir=str(scratch / "cache"))
        rows.save_to_disk(str(path))
    finally:
        if was_enabled:
            datasets.enable_progress_bars()
    del rows  # it maps the files that go now
    shutil.rmtree(scratch)
    return count


def import_datasets() -> ModuleType:
    """Import the optional library `datasets`; say how to install it where it is missing."""
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            "--format hf needs the package `datasets`, which is not installed: pip install datasets, or export "
            "parquet, which datasets.load_dataset reads too."
        ) from None
