"""The catalogue of one kind of rows: its files, the commits and rows that they hold, and how to read them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from brain_align.common.errors import DamagedPartError
from brain_align.common.schemas import KINDS
from brain_align.common.store.files.backends import Entry, StorageBackend
from brain_align.common.store.format.names import is_compacted, is_part, plain_file, sequence_of
from brain_align.common.store.format.part_files import Part
from brain_align.common.store.format.part_map import Commits, PartMap
from brain_align.common.store.table.index_files import IndexFile, IndexFiles
from brain_align.common.store.table.keys import Rows
from brain_align.common.store.table.part_reader import PartReader
from brain_align.common.store.table.row_index import CommittedRows, RowIndex, located
from brain_align.common.store.table.summary_rows import KEYS

INDEX_EVERY = 128
"""Maximum number of commits outside of the index files: opening a store reads the parts of these."""

OnDamage = Callable[[str, str, str], str]
"""(kind, file, reason) -> the message for the user; sets the file aside if the store is open for writing."""


class Catalogue:
    """All that one opening of a store knows about one kind of rows."""

    def __init__(
        self, kind: str, backend: StorageBackend, run_id: str, on_damage: OnDamage, *, use_index: bool = True
    ) -> None:
        self.kind = kind
        self.rows = RowIndex(kind)
        self.part_map = PartMap()
        self._backend = backend
        self._on_damage = on_damage
        self._reader = PartReader(backend, kind, run_id)
        self._numbers: dict[str, int] = {}  # of each commit, in `rows.commits`
        self._index = IndexFiles(backend, kind)
        self._postponed: set[str] = set()  # compacted parts that are read but whose new rows are not visible yet
        self.next_sequence = 0  # of the next commit: one more than any seen so far
        self._load(self._index.read() if use_index else [])

    def find(self, *keys: Sequence[Any] | pa.Array) -> Rows:
        """Return the numbers [wanted] of the rows with these keys, -1 for keys that no row has."""
        fields = [KINDS[self.kind].field(name) for name in KEYS[self.kind]]
        columns = zip(keys, fields, strict=True)
        return self.rows.find([_array(column, field.type) for column, field in columns])

    # -- reading -----------------------------------------------------------------------------------------------------

    def take(self, numbers: Rows, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows with these numbers, in this order, from verified parts; only the given columns.

        Raises:
            DamagedPartError: a required part is damaged or gone.
        """
        names = KINDS[self.kind].names if columns is None else list(columns)
        if not len(numbers):
            return KINDS[self.kind].empty_table().select(names)
        commits, rows = self.rows.locate(numbers)
        order = np.argsort(commits, kind="stable")
        bounds = np.flatnonzero(np.diff(commits[order], prepend=-1, append=-1))
        taken = [self._taken(commits[order[first]], rows[order[first:last]], names) for first, last in pairwise(bounds)]
        table = pa.Table.from_batches(taken)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return table if np.all(back[1:] > back[:-1]) else table.combine_chunks().take(pa.array(back))

    def read(self, commit: str) -> pa.RecordBatch:
        """Return all rows of one commit, from a verified part; they are the same whichever file holds them.

        Raises:
            DamagedPartError: every part that held it is damaged or gone. Damaged parts were set aside and reported.
            UserError: it cannot be read, for another reason than damage.
        """
        reason = f"{self._backend.uri}/{self.kind}: no part holds the rows of commit {commit} any longer."
        while True:
            extent = self.part_map.extent(commit)
            if extent is None:
                raise DamagedPartError(reason)
            try:
                batch = self._reader.batch(extent.file)
                return batch if extent.rows is None else batch.slice(extent.first, extent.rows)
            except FileNotFoundError:  # compacted since the last look
                self._look_again(with_rows=False)
                if self.part_map.extent(commit) == extent:
                    self._lose(extent.file)
            except DamagedPartError as error:
                self._lose(extent.file)
                reason = self._on_damage(self.kind, extent.file, str(error))

    def _taken(self, number: int, rows: Rows, names: list[str]) -> pa.RecordBatch:
        """Return columns of these rows of a commit, without copying if they are all of it."""
        commit = self.rows.commits[number]
        batch = self.read(commit).select(names)
        if rows.max() >= batch.num_rows:
            raise DamagedPartError(
                f"{self._backend.uri}/index does not match commit {commit} of the {self.kind}; `brain store repair` "
                f"rebuilds it."
            )
        whole = len(rows) == batch.num_rows and np.array_equal(rows, np.arange(len(rows)))
        return batch if whole else batch.take(pa.array(rows))

    def read_again(self, commits: Sequence[str]) -> list[pa.RecordBatch]:
        """Return the rows of each commit from parts that are verified again now.

        Rewriting rows needs this: bytes that changed on disk after the last check would get a valid checksum.
        """
        extents = [self.part_map.extent(commit) for commit in commits]
        self._reader.check_again({extent.file for extent in extents if extent is not None})
        return [self.read(commit) for commit in commits]

    def batches(self, listed: pa.Table | None = None, *, skip_damaged: bool = False) -> Iterator[pa.RecordBatch]:
        """Yield the rows that count, one batch per commit, in the order of commitment.

        Args:
            listed: only these of the rows that `RowIndex.listed` returns.
            skip_damaged: leave out the rows of damaged parts, which the callback for damage is told of, and go on.

        Raises:
            DamagedPartError, UserError: as for `read`.
        """
        wanted = self.rows.listed() if listed is None else listed
        numbers, rows = (wanted[name].to_numpy() for name in ("commit", "row"))
        for first, last in pairwise(np.flatnonzero(np.diff(numbers, prepend=-1, append=-1))):
            try:
                yield self._taken(numbers[first], rows[first:last], KINDS[self.kind].names)
            except DamagedPartError:
                if not skip_damaged:
                    raise

    def table(self) -> pa.Table:
        """Return the rows that count, in the order of commitment; raise as `read` does."""
        return pa.Table.from_batches(self.batches(), schema=KINDS[self.kind])

    # -- changing ----------------------------------------------------------------------------------------------------

    def committed(self, commit: str, content: pa.Buffer, batch: pa.RecordBatch, replaced: Rows) -> None:
        """Add a part that this opening has written, with these rows; their keys are new, or of `replaced` rows."""
        self.part_map.add({plain_file(commit): content.size}, {})
        self._reader.keep_written(plain_file(commit), content)
        if len(replaced):
            self.rows.hide(replaced)
        self.rows.add_fresh(CommittedRows(batch, self._number(commit)))

    def refresh(self) -> None:
        """Take in the changes of other writers."""
        self._look_again(with_rows=True)

    def files_there(self) -> list[str]:
        """Return the parts that this opening reads and that exist now, in the order of their commits."""
        self._look_again(with_rows=False)
        return [file for file in self.part_map.read_files() if file not in self._postponed]

    def write_index(self, *, at_least: int = INDEX_EVERY) -> None:
        """Bring the index files up to date if they lack at least this many commits and compacted parts."""
        compacted = self.part_map.compacted.keys() - self._postponed  # of those, the index would lack some rows
        self._index.update(self.rows, self.part_map, compacted, at_least)

    def rebuild_index(self) -> None:
        """Delete the index files, and write all rows to new ones."""
        self._index.drop()
        self.write_index(at_least=1)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _load(self, index_files: list[tuple[str, IndexFile]]) -> None:
        entries = {entry.name: entry for entry in self._backend.list(self.kind)}
        there = {name: entry.size for name, entry in entries.items()}
        for _, index_file in index_files:
            self.part_map.add(*index_file.still_true(there))
        tables = []
        for name, index_file in index_files:
            tables.append(self._rows_of_index_file(index_file))
            self._index.taken_in(name, index_file, tables[-1].num_rows, len(self.rows.commits))
        self._take_in([entry for name, entry in entries.items() if name not in self.part_map.sizes], tables, ())

    def _look_again(self, *, with_rows: bool) -> None:
        """List the files again; without the new rows, this opening goes on seeing the rows that it saw."""
        entries = {entry.name: entry for entry in self._backend.list(self.kind)}
        gone = self.part_map.sizes.keys() - entries.keys()
        known = self.part_map.sizes.keys() - (self._postponed if with_rows else set())
        new = [entry for name, entry in entries.items() if name not in known]
        if not with_rows:
            new = [entry for entry in new if is_compacted(entry.name)]
            self._postponed.update(entry.name for entry in new)
        self._take_in(new, [], gone, with_rows=with_rows)

    def _take_in(self, new: list[Entry], tables: list[pa.Table], gone: Any, *, with_rows: bool = True) -> None:
        """Add the rows of new files and of index files; hide the rows that no file holds any longer."""
        sizes: dict[str, int] = {}
        compacted: dict[str, Commits] = {}

        def examined() -> Iterator[CommittedRows]:
            for entry in sorted(new, key=lambda entry: entry.name):
                part = self._examine(entry)
                if part is not None:
                    sizes[entry.name] = entry.size
                    if is_compacted(entry.name):
                        compacted[entry.name] = part.commits
                    if with_rows:
                        self._postponed.discard(entry.name)
                        yield from self._new_rows(part)

        new_tables = list(located(self.kind, examined()))
        if not (sizes or tables or gone):
            return
        self.part_map.discard(gone)
        self.part_map.add(sizes, compacted)
        self._hide_lost([*tables, *new_tables])

    def _lose(self, file: str) -> None:
        """Forget a part that is damaged or gone; hide the rows that no other part holds."""
        self.part_map.discard([file])
        self._hide_lost([])

    def _hide_lost(self, tables: list[pa.Table]) -> None:
        """Hide the rows that no part holds; add the rows of `tables`."""
        lost = [number for number, commit in enumerate(self.rows.commits) if self.part_map.extent(commit) is None]
        self.rows.add_any(tables, lost)

    def _examine(self, entry: Entry) -> Part | None:
        """Read and verify a part that no index file knows."""
        try:
            if not is_part(entry.name):
                path = f"{self._backend.uri}/{self.kind}/{entry.name}"
                raise DamagedPartError(f"{path} is not a part of a sample store.")
            return self._reader.part(entry.name)
        except FileNotFoundError:
            return None
        except DamagedPartError as error:
            self._on_damage(self.kind, entry.name, str(error))
            return None

    def _new_rows(self, part: Part) -> Iterator[CommittedRows]:
        """Yield the rows of a part's commits that are not known yet."""
        first = 0
        for commit, rows in part.commits:
            if commit not in self._numbers:
                batch = part.batch if len(part.commits) == 1 else part.batch.slice(first, rows)
                yield CommittedRows(batch, self._number(commit))
            first += rows

    def _rows_of_index_file(self, index_file: IndexFile) -> pa.Table:
        """Return the rows of an index file without those that another has brought or that no file holds."""
        fresh = [
            commit not in self._numbers and self.part_map.extent(commit) is not None for commit in index_file.commits
        ]
        numbers = [self._number(commit) if new else -1 for commit, new in zip(index_file.commits, fresh, strict=True)]
        return index_file.rows_with_numbers(np.asarray(numbers, dtype=np.int64))

    def _number(self, commit: str) -> int:
        number = self._numbers.setdefault(commit, len(self.rows.commits))
        if number == len(self.rows.commits):
            self.rows.commits.append(commit)
            self.next_sequence = max(self.next_sequence, sequence_of(commit) + 1)
        return number


def _array(values: Sequence[Any] | pa.Array, type_: pa.DataType) -> pa.Array:
    return values.cast(type_) if isinstance(values, pa.Array) else pa.array(values, type=type_)
