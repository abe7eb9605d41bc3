"""The summary rows of one kind in memory: found by key, listed in the order of commitment, each key once."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.store.table.keys import Hashes, HashTable, Rows, hash_keys
from brain_align.common.store.table.summary_rows import KEYS, SUMMARY_SCHEMAS, summary_rows

_RECENT_ROWS = 1024  # minimum number of rows that a dict holds before they are sorted in
_ROWS_AT_ONCE = 1024  # rows that are summarised together
_WAITING_BYTES = 16 << 20  # of rows that are kept whole until they are summarised

_LOCATION = [pa.field("commit", pa.int32()), pa.field("row", pa.int32()), pa.field("hash", pa.uint64())]
LOCATED = {kind: pa.schema([*schema, *_LOCATION]) for kind, schema in SUMMARY_SCHEMAS.items()}
"""Summary rows with the location of each, its commit (a number) and its row there, and the hash of its key."""


class CommittedRows(NamedTuple):
    """All rows of one commit, with the number of the commit."""

    batch: pa.RecordBatch
    commit: int


def located(kind: str, committed: Iterable[CommittedRows]) -> Iterator[pa.Table]:
    """Yield the summary rows of some commits with their locations, in a few tables of one chunk each."""
    piece: list[CommittedRows] = []
    count = 0
    for rows in committed:
        piece.append(rows)
        count += rows.batch.num_rows
        if count >= _ROWS_AT_ONCE:
            yield _located(kind, piece)
            piece, count = [], 0
    if piece:
        yield _located(kind, piece)


def _located(kind: str, committed: Sequence[CommittedRows]) -> pa.Table:
    summary = summary_rows(kind, [rows.batch for rows in committed])
    counts = [rows.batch.num_rows for rows in committed]
    commit = np.repeat(np.array([rows.commit for rows in committed], dtype=np.int32), counts)
    row = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    hashes = hash_keys([summary[name].chunk(0) for name in KEYS[kind]])
    return pa.table([*summary.columns, *map(pa.array, (commit, row, hashes))], schema=LOCATED[kind])


class RowIndex:
    """All summary rows of one kind.

    Rows are numbered as they arrive. Of two rows with the same key one counts: the one with fewer null values, and of
    equal ones that of the earlier commit. The other keeps its number and is neither found nor listed.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.commits: list[str] = []
        self._chunks: list[pa.Table] = []
        self._starts: Rows | None = None  # [chunks] number of the first row of each
        self._recent: dict[Any, int] = {}  # key -> row number, of rows that are not in the hash table yet
        self._settled = 0  # rows that are
        self._hidden = np.zeros(0, dtype=bool)  # [settled] rows that lost to another row, or whose file is gone
        self._rows = 0
        self._waiting: list[CommittedRows] = []  # the newest rows, not in a chunk yet: many are summarised at once
        self._waiting_bytes = 0
        self._hidden_rows = 0
        self._table: pa.Table | None = None
        self._listed: pa.Table | None = None
        self._gone = np.zeros(0, dtype=np.int32)  # commits that no file holds any longer
        self._settle()

    def __len__(self) -> int:
        return self._rows - self._hidden_rows

    def hidden_numbers(self) -> Rows:
        """Return the numbers of the rows that do not count."""
        return np.flatnonzero(self._hidden)

    def add_fresh(self, rows: CommittedRows) -> None:
        """Add the rows of a commit, whose keys are new (see `find`)."""
        keys = zip(*(rows.batch[name].to_pylist() for name in KEYS[self._kind]), strict=True)
        self._recent.update((key, number) for number, key in enumerate(keys, start=self._rows))
        self._waiting.append(rows)
        self._waiting_bytes += rows.batch.get_total_buffer_size()
        self._rows += rows.batch.num_rows
        self._listed = None
        if self._waiting_bytes > _WAITING_BYTES:
            self._summarise()
        if self._rows - self._settled > max(_RECENT_ROWS, self._settled // 16):
            self._settle()

    def hide(self, numbers: Rows) -> None:
        """Hide rows, for which better ones with the same keys are added next."""
        if numbers.max() >= self._settled:
            self._settle()
        self._hidden[numbers] = True
        self._hidden_rows = int(self._hidden.sum())
        self._listed = None

    def nulls(self, numbers: Rows) -> Rows:
        """Return how many null values each of these rows has; those of other kinds than scores have none."""
        nulls = np.zeros(len(numbers), dtype=np.int64)
        if "nulls" in LOCATED[self._kind].names:
            for chunk, which, local in self._by_chunk(numbers):
                nulls[which] = chunk["nulls"].chunk(0).to_numpy()[local]
        return nulls

    def add_any(self, tables: Sequence[pa.Table], gone: Sequence[int] = ()) -> None:
        """Add rows that may repeat known keys; from now on the commits in `gone` are hidden."""
        self._summarise()
        for table in tables:
            self._append(table)
            self._rows += table.num_rows
        self._gone = np.asarray(gone, dtype=np.int32)
        self._settle()

    def find(self, keys: Sequence[pa.Array]) -> Rows:
        """Return the number [wanted] of the row with each key (its columns, in parallel); -1 for keys without a row."""
        found = np.full(len(keys[0]), -1, dtype=np.int64)
        asked, rows = self._hash_table.candidates(hash_keys(keys)) if self._settled else (found[:0], found[:0])
        for chunk, which, local in self._by_chunk(rows):
            same = ~self._hidden[rows[which]]
            for name, wanted in zip(KEYS[self._kind], keys, strict=True):
                there = _plain(chunk[name].chunk(0).take(pa.array(local)))
                same &= pc.equal(there, wanted.take(pa.array(asked[which]))).to_numpy(zero_copy_only=False)
            found[asked[which][same]] = rows[which][same]
        if self._recent:
            wanted_keys = zip(*(column.to_pylist() for column in keys), strict=True)
            recent = np.array([self._recent.get(key, -1) for key in wanted_keys], dtype=np.int64)
            found = np.where(found < 0, recent, found)
        return found

    def locate(self, numbers: Rows) -> tuple[Rows, Rows]:
        """Return the commit (its number) of each of these rows, and the row within the commit."""
        commits, rows = np.empty_like(numbers), np.empty_like(numbers)
        for chunk, which, local in self._by_chunk(numbers):
            commits[which] = chunk["commit"].chunk(0).to_numpy()[local]
            rows[which] = chunk["row"].chunk(0).to_numpy()[local]
        return commits, rows

    def table(self) -> pa.Table:
        """Return all rows by number, including hidden ones."""
        self._summarise()
        if self._table is None:
            self._table = pa.concat_tables(self._chunks) if self._chunks else LOCATED[self._kind].empty_table()
        return self._table

    def listed(self) -> pa.Table:
        """Return the rows that count, in the order of commitment."""
        if self._listed is None:
            table, order = self.table(), self._positions()
            if self._hidden_rows:
                keep = np.flatnonzero(~np.concatenate([self._hidden, np.zeros(self._rows - self._settled, dtype=bool)]))
                table, order = table.take(pa.array(keep)), order[keep]
            if not np.all(order[1:] > order[:-1]):
                table = table.take(pa.array(np.argsort(order)))
            self._listed = table
        return self._listed

    def _append(self, table: pa.Table) -> None:
        self._chunks.extend(pa.Table.from_batches([batch]) for batch in table.to_batches() if batch.num_rows)
        self._table = self._listed = self._starts = None

    def _summarise(self) -> None:
        if self._waiting:
            for table in located(self._kind, self._waiting):
                self._append(table)
            self._waiting, self._waiting_bytes = [], 0

    def _by_chunk(self, numbers: Rows) -> Iterator[tuple[pa.Table, Rows, Rows]]:
        """Yield (chunk, indices into `numbers` of its rows, those rows within the chunk)."""
        if not len(numbers):
            return
        if self._waiting and numbers.max() >= self._rows - sum(rows.batch.num_rows for rows in self._waiting):
            self._summarise()
        if self._starts is None:
            self._starts = np.cumsum([0, *(chunk.num_rows for chunk in self._chunks[:-1])])
        of = np.searchsorted(self._starts, numbers, side="right") - 1
        for chunk in np.unique(of):
            which = np.flatnonzero(of == chunk)
            yield self._chunks[chunk], which, numbers[which] - self._starts[chunk]

    def _tidy(self) -> None:
        """Merge chunks so that they stay few, and a row is copied only when the number of rows has doubled."""
        self._summarise()
        chunks = self._chunks
        while len(chunks) > 1 and chunks[-2].num_rows < 2 * chunks[-1].num_rows:
            last = 2
            while last < len(chunks) and chunks[-last - 1].num_rows < 2 * sum(c.num_rows for c in chunks[-last:]):
                last += 1
            chunks[-last:] = [pa.concat_tables(chunks[-last:]).combine_chunks()]
        self._table = self._starts = None

    def _settle(self) -> None:
        """Sort all rows into the hash table; decide which of several rows with the same key counts."""
        self._tidy()
        hashes: Hashes = self._column("hash")
        self._hash_table = HashTable(hashes)
        self._hidden = np.isin(self._column("commit"), self._gone)
        self._hide_losers()
        self._hidden_rows = int(self._hidden.sum())
        self._settled = self._rows
        self._recent = {}
        self._listed = None

    def _hide_losers(self) -> None:
        repeated = self._hash_table.repeated()
        repeated = repeated[~self._hidden[repeated]]
        if not len(repeated):
            return
        repeated = repeated[np.lexsort((self._positions()[repeated], self.nulls(repeated)))]
        rows = self.table().take(pa.array(repeated))
        keys = zip(*(rows[name].to_pylist() for name in KEYS[self._kind]), strict=True)
        first: set[Any] = set()
        for number, key in zip(repeated, keys, strict=True):
            self._hidden[number] = key in first
            first.add(key)

    def _positions(self) -> Rows:
        """Return numbers [rows] that ascend in the order of commitment."""
        by_commit = np.argsort(sorted(range(len(self.commits)), key=self.commits.__getitem__))
        return (by_commit[self._column("commit")] << 32) | self._column("row")

    def _column(self, name: str) -> Any:
        return self.table()[name].to_numpy()


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
