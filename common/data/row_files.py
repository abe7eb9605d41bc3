"""Rows of files of any size, read one by one: JSON lines, parquet and Arrow IPC."""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brain_align.common.errors import UserError, first_line, refuse_unreadable

Row = dict[str, Any]

_JSON = (".jsonl", ".jsonl.gz")
_ARROW = (".arrow", ".feather", ".ipc")
SUFFIXES = (*_JSON, ".parquet", *_ARROW)  # of readable files
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON spells it
_ROWS = 1024
_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, RecursionError, zlib.error, pa.ArrowException, MemoryError)
_LONGEST_LINE = 1 << 26  # characters: what one row may take of memory
_ARROW_FILE = b"ARROW1"  # the first bytes of Arrow's file format, including feather, but not of its stream format


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of a file, whose suffix tells its kind: the needed columns, or all where one of them is missing.

    Raises:
        UserError: the file is missing, of another kind, or damaged (the line is named).
    """
    require_file(path)
    with readable(str(path)):
        if path.name.endswith(_JSON):
            yield from _json_lines(path, columns)
        elif path.suffix == ".parquet":
            yield from _parquet_rows(path, columns)
        elif path.suffix in _ARROW:
            yield from rows_of(_arrow_batches(path), columns)
        else:
            raise UserError(f"{path} has none of the suffixes {', '.join(SUFFIXES)}; convert it to one of these.")


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn whatever libraries raise on a damaged source of rows into a UserError that calls the source `where`."""
    try:
        yield
    except _UNREADABLE as error:
        refuse_unreadable(Path(where), error)
        raise UserError(
            f"{where} is damaged or of another kind than its suffix tells: {first_line(error).rstrip('.')}; restore or "
            f"convert it."
        ) from None


def require_file(path: Path) -> None:
    """Refuse a path that is not a file's, before work that would be lost without it."""
    try:
        is_there = path.is_file()
    except OSError as error:  # where its directory may not be read, say
        refuse_unreadable(path, error)
        raise
    if not is_there:
        raise UserError(f"There is no file {path}; check its path.")


def rows_of(batches: Iterable[pa.RecordBatch | pa.Table], columns: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of Arrow data as Python values: the needed columns, or all where one of them is missing.

    Raises:
        UserError: two columns have the same name.
    """
    for batch in batches:
        twice = [name for name, count in Counter(batch.schema.names).items() if count > 1]
        if twice:
            raise UserError(f"The column {twice[0]!r} is there more than once; rename or remove one of them.")
        kept = batch.select(columns) if set(columns) <= set(batch.schema.names) else batch
        kept.validate(full=True)  # a wrong offset would be followed, out of the file or out of memory
        for start in range(0, kept.num_rows, _ROWS):
            yield from kept.slice(start, _ROWS).to_pylist()


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    with pq.ParquetFile(path, memory_map=True) as file:
        there = file.schema_arrow.names
        wanted = list(columns) if set(columns) <= set(there) else there
        yield from rows_of(file.iter_batches(_ROWS, columns=wanted), columns)


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
        source.seek(0)
        if not is_file:
            yield from pa.ipc.open_stream(source)
            return
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def _json_lines(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), ""), start=1):
            if len(line) > _LONGEST_LINE:  # a few bytes of an archive can stand for any length
                raise UserError(f"{path}, line {number}, is longer than {_LONGEST_LINE:,} characters; remove it.")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                what = f"{error.msg} at character {error.pos + 1}"
                raise UserError(f"{path}, line {number}, is not JSON ({what}); fix or remove the line.") from None
            except (ValueError, RecursionError) as error:  # JSON, but an integer with too many digits, or too deep
                what = str(error).partition(";")[0]
                raise UserError(f"{path}, line {number}, cannot be read ({what}); fix or remove the line.") from None
            if half := _half_character(line, row, columns):
                raise UserError(
                    f"{path}, line {number}, has {half!r}, which is half of a character (an emoji that was cut, say); "
                    f"fix or remove the line."
                )
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}, is not a JSON object; fix or remove the line.")
            yield row


def _half_character(line: str, row: Any, columns: tuple[str, ...]) -> str | None:
    """Return a surrogate that stands alone in one of these columns: JSON can spell it, but no encoding has it."""
    if not _SURROGATE.search(line) or not isinstance(row, dict):
        return None
    text = json.dumps([row.get(column) for column in columns], ensure_ascii=False)
    return next((character for character in text if "\ud800" <= character <= "\udfff"), None)
