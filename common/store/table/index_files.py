"""Index files: summary rows on disk, so that opening a store need not read its parts.

    index/groups-<checksum>.arrow

An index file holds the summary rows of some commits, the sizes of these commits' own files, and the commits of some
compacted parts. It is built from verified parts and has a checksum of its own. What it states about files that are gone
or have another size is ignored. Deleting all index files costs nothing but the time to rebuild them.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from brain_align.common.store.files.backends import StorageBackend
from brain_align.common.store.format.names import checksum, is_part, plain_file
from brain_align.common.store.format.part_files import decode_table, encode_table
from brain_align.common.store.format.part_map import Commits, PartMap
from brain_align.common.store.table.keys import Rows
from brain_align.common.store.table.row_index import LOCATED, RowIndex

_LOG = logging.getLogger(__name__)
_DIRECTORY = "index"
_VERSION = 2  # of index files only
_VERSION_KEY = b"brain.index_version"
_COMMITS_KEY = b"brain.commits"
_SIZES_KEY = b"brain.sizes"
_COMPACTED_KEY = b"brain.compacted"
_ATTEMPTS = 5


@dataclass(frozen=True)
class IndexFile:
    """The content of one index file."""

    rows: pa.Table  # summary rows with their locations; their `commit` numbers index `commits`
    commits: list[str]
    sizes: list[int | None]  # [commits] bytes of the commit's own part; None if that was gone already
    compacted: dict[str, tuple[int, Commits]]  # size and commits of some compacted parts

    def still_true(self, sizes: Mapping[str, int]) -> tuple[dict[str, int], dict[str, Commits]]:
        """Return what it states (see `PartMap.add`) about those parts that have the stated size among these."""
        stated = dict(zip(map(plain_file, self.commits), self.sizes, strict=True))
        stated |= {file: size for file, (size, _) in self.compacted.items()}
        true = {file: sizes[file] for file, size in stated.items() if file in sizes and size == sizes[file]}
        return true, {file: self.compacted[file][1] for file in self.compacted.keys() & true.keys()}

    def rows_with_numbers(self, numbers: Rows) -> pa.Table:
        """Return the rows with `numbers` [commits] in place of their commits' own, without those of commits with -1."""
        commit = numbers[self.rows["commit"].to_numpy()]
        rows = _with_commits(self.rows, commit)
        return rows if (numbers >= 0).all() else rows.filter(pa.array(commit >= 0))


class _Span(NamedTuple):
    """The rows that are in one index file, `first` to `end`, and the compacted parts that it records."""

    file: str
    first: int
    end: int
    compacted: frozenset[str]


class IndexFiles:
    """The index files of one kind that an opening has read and written."""

    def __init__(self, backend: StorageBackend, kind: str) -> None:
        self._backend = backend
        self._kind = kind
        self._spans: list[_Span] = []  # in the order of their rows
        self._unusable: list[str] = []  # files that have another version or are damaged
        self._commits = 0  # number of the opening's commits that are in them: its first ones

    def read(self) -> list[tuple[str, IndexFile]]:
        """Return the usable index files with their names, by first commit; others are logged."""
        for _attempt in range(_ATTEMPTS):
            usable: list[tuple[str, IndexFile]] = []
            self._unusable = []
            try:
                for name in sorted(self._names()):
                    try:
                        usable.append((name, self._decoded(name)))
                    except (ValueError, KeyError, TypeError, RecursionError) as error:
                        _LOG.warning("The index file %s is not used: %s", f"{self._backend.uri}/{_path(name)}", error)
                        self._unusable.append(name)
            except FileNotFoundError:
                continue  # a writer has just replaced one by a larger one
            return sorted(usable, key=lambda item: item[1].commits[:1])
        return []  # then the parts themselves are read

    def taken_in(self, name: str, index_file: IndexFile, rows: int, commits: int) -> None:
        """Note that the opening has taken in so many rows of a file, and has so many commits now."""
        first = self._spans[-1].end if self._spans else 0
        self._spans.append(_Span(name, first, first + rows, frozenset(index_file.compacted)))
        self._commits = commits

    def update(self, rows: RowIndex, part_map: PartMap, compacted: set[str], at_least: int) -> None:
        """Write what the index files lack of all rows of the opening, and of some compacted parts with only such rows.

        Nothing is written for fewer than `at_least` commits and compacted parts. A new index file absorbs those before
        it that are not at least twice as large, so they stay few.
        """
        if len(rows.commits) - self._commits + len(compacted - _recorded(self._spans)) < at_least:
            return
        kept, table = list(self._spans), rows.table()
        while kept and table.num_rows - kept[-1].end > (kept[-1].end - kept[-1].first) / 2:
            kept.pop()
        first = kept[-1].end if kept else 0
        numbers, local = np.unique(table["commit"].slice(first).to_numpy(), return_inverse=True)
        commits = [rows.commits[number] for number in numbers]
        sizes = [part_map.sizes.get(plain_file(commit)) for commit in commits]
        new = compacted - _recorded(kept)
        held = {file: (part_map.sizes[file], part_map.compacted[file]) for file in part_map.compacted if file in new}
        name = self._write(IndexFile(_with_commits(table.slice(first), local), commits, sizes, held))
        for file in (*self._unusable, *(span.file for span in self._spans[len(kept) :])):
            if file != name:
                self._backend.remove(_path(file))
        self._unusable = []
        self._spans = [*kept, _Span(name, first, table.num_rows, frozenset(held))]
        self._commits = len(rows.commits)

    def drop(self) -> None:
        """Delete the index files."""
        for name in self._names():
            self._backend.remove(_path(name))
        self._spans = []
        self._commits = 0

    def _names(self) -> list[str]:
        names = [entry.name for entry in self._backend.list(_DIRECTORY)]
        return [name for name in names if name.startswith(f"{self._kind}-")]

    def _decoded(self, name: str) -> IndexFile:
        content = self._backend.read_checked(_path(name))
        if content is None:
            raise ValueError("its bytes do not match the checksum in its name")
        batch = decode_table(content)
        metadata = batch.schema.metadata or {}
        table = pa.Table.from_batches([batch])
        if int(metadata[_VERSION_KEY]) != _VERSION or not table.schema.equals(LOCATED[self._kind]):
            raise ValueError("it has another version")
        commits, sizes, compacted = (json.loads(metadata[key]) for key in (_COMMITS_KEY, _SIZES_KEY, _COMPACTED_KEY))
        held = {str(file): (int(size), _commits(stated)) for file, (size, stated) in compacted.items()}
        numbers, rows = (table[name].to_numpy() for name in ("commit", "row"))
        places_exist = not len(numbers) or (numbers.min() >= 0 and numbers.max() < len(commits) and rows.min() >= 0)
        if not places_exist or len(sizes) != len(commits) or any(table[name].null_count for name in ("commit", "row")):
            raise ValueError("its rows have no place")
        if not all(is_part(file) for file in (*map(plain_file, commits), *held)):
            raise ValueError("it names files that are not parts")
        return IndexFile(table.replace_schema_metadata(None), commits, sizes, held)

    def _write(self, index_file: IndexFile) -> str:
        metadata = {
            _VERSION_KEY: str(_VERSION),
            _COMMITS_KEY: json.dumps(index_file.commits),
            _SIZES_KEY: json.dumps(index_file.sizes),
            _COMPACTED_KEY: json.dumps(index_file.compacted),
        }
        batches = index_file.rows.combine_chunks().to_batches()
        batch = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=LOCATED[self._kind])
        content = encode_table(batch, metadata)
        name = f"{self._kind}-{checksum(content)}.arrow"
        self._backend.put(_DIRECTORY, name, content)
        return name


def _commits(stated: Any) -> Commits:
    return [(str(commit), int(rows)) for commit, rows in stated]


def _path(name: str) -> str:
    return f"{_DIRECTORY}/{name}"


def _recorded(spans: list[_Span]) -> set[str]:
    return {file for span in spans for file in span.compacted}


def _with_commits(rows: pa.Table, numbers: Rows) -> pa.Table:
    index = rows.schema.get_field_index("commit")
    return rows.set_column(index, rows.schema.field(index), pa.array(numbers.astype(np.int32)))
