"""One kind of rows of a store: which files there are, which commits and rows they hold, and how to read them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from common.errors import DamagedPartError
from common.schemas import KINDS
from common.storage.holdings import Extent, FileFacts, Holdings
from common.storage.keys import Rows
from common.storage.light_rows import KEYS, light_rows
from common.storage.names import Commit, PartName, parse_name
from common.storage.part_reader import PartReader
from common.storage.places import Entry, Place
from common.storage.row_index import LOCATED, RowIndex, located
from common.storage.segments import DIRECTORY, Segment, read_segments, write_segment

_LOG = logging.getLogger(__name__)

INDEX_EVERY = 128
"""Commits that may be outside of the index files: opening a store reads these parts themselves."""

OnDamage = Callable[[str, str, str], str]
"""(kind, file, reason) -> the sentence for the user; sets the file aside where that is allowed"""


class Catalogue:
    """Everything of one kind that one opening of a store knows."""

    def __init__(self, kind: str, place: Place, on_damage: OnDamage) -> None:
        self.kind = kind
        self.rows = RowIndex(kind)
        self.holdings = Holdings()
        self._place = place
        self._on_damage = on_damage
        self._reader = PartReader(place, kind)
        self._numbers: dict[Commit, int] = {}  # of each commit in `rows.commits`
        self._segments: list[tuple[str, int]] = []  # (file, number of the first row that it does not hold), ascending
        self._unindexed = 0  # commits
        self.next_sequence = 0  # of the next commit: one more than any that was seen
        self._load()

    # -- finding -----------------------------------------------------------------------------------------------------

    def find(self, *keys: Sequence[Any]) -> Rows:
        """[wanted] numbers of the rows with these keys, -1 where there is none."""
        fields = [KINDS[self.kind].field(name) for name in KEYS[self.kind]]
        return self.rows.find([pa.array(column, type=field.type) for column, field in zip(keys, fields, strict=True)])

    def commit_of(self, number: int) -> Commit:
        """The commit with a number of the light rows' `commit` column."""
        return self.rows.commits[number]

    # -- reading -----------------------------------------------------------------------------------------------------

    def take(self, numbers: Rows) -> pa.Table:
        """The rows with these numbers, in this order, from verified parts.

        Raises:
            DamagedPartError: a part that is needed is damaged, or gone.
        """
        if not len(numbers):
            return KINDS[self.kind].empty_table()
        places = self.rows.table().select(["commit", "row"]).take(pa.array(numbers))
        commits, rows = (np.asarray(places[name]) for name in ("commit", "row"))
        order = np.argsort(commits, kind="stable")
        bounds = np.flatnonzero(np.diff(commits[order], prepend=-1, append=-1))
        taken = [
            self.read(self.commit_of(commits[order[first]])).take(pa.array(rows[order[first:last]]))
            for first, last in pairwise(bounds)
        ]
        table = pa.Table.from_batches(taken, schema=KINDS[self.kind])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return table if np.all(back[1:] > back[:-1]) else table.combine_chunks().take(pa.array(back))

    def read(self, commit: Commit) -> pa.RecordBatch:
        """All rows of one commit, from a verified part; the same rows whichever file holds them.

        Raises:
            DamagedPartError: every part that held it is damaged or gone. It was set aside and named.
            UserError: it cannot be read, for a reason that is not damage.
        """
        reason = f"{self._place.uri}/{self.kind}: no part holds the rows of commit {commit} any more."
        for _attempt in range(len(self.holdings.files) + 2):
            extent = self.holdings.extent(commit)
            if extent is None:
                raise DamagedPartError(reason)
            try:
                return self._reader.batch(extent.file).slice(extent.first, extent.rows)
            except FileNotFoundError:  # compacted since we looked
                self.refresh()
                if self.holdings.extent(commit) == extent:
                    self.holdings.discard([extent.file])
            except DamagedPartError as error:
                reason = self._lost(extent, str(error))
        raise DamagedPartError(reason)

    def is_good(self, file: str) -> bool:
        """Whether a part matches its checksum; checked once in an opening."""
        try:
            self._reader.batch(file)
        except (FileNotFoundError, DamagedPartError):
            return False
        return True

    def commits(self, listed: pa.Table | None = None) -> Iterator[tuple[Commit, Rows]]:
        """Each commit with the rows of it that count, in the order of commitment.

        Args:
            listed: light rows to go through (see `RowIndex.listed`); default: all.
        """
        light = self.rows.listed() if listed is None else listed
        numbers, rows = (light[name].to_numpy() for name in ("commit", "row"))
        bounds = np.flatnonzero(np.diff(numbers, prepend=-1, append=-1)) if len(numbers) else [0]
        for first, last in pairwise(bounds):
            yield self.commit_of(numbers[first]), rows[first:last]

    # -- changing ----------------------------------------------------------------------------------------------------

    def committed(self, name: PartName, size: int, batch: pa.RecordBatch) -> None:
        """A part was written by this opening; its keys are new."""
        self.holdings.add(str(name), FileFacts(size, [(name.commit, batch.num_rows)]))
        self.rows.add_fresh(located(self.kind, light_rows(self.kind, batch), self._number(name.commit)))
        self._unindexed += 1

    def compacted(self, name: PartName, facts: FileFacts) -> None:
        """A part with commits that are known already was written by this opening."""
        self.holdings.add(str(name), facts)

    def refresh(self) -> None:
        """Take in what other writers have done since."""
        entries = {entry.name: entry for entry in self._place.list(self.kind)}
        gone = self.holdings.files.keys() - entries.keys()
        self._take_in([entry for name, entry in entries.items() if name not in self.holdings.files], [], gone)

    def write_index(self, *, at_least: int = INDEX_EVERY) -> None:
        """Bring the index files up to date, if that many commits are missing in them.

        A new segment takes in those before it that are not at least twice as large, so they stay few.
        """
        if self._unindexed < at_least:
            return
        kept = list(self._segments)
        while kept and self.rows.rows - kept[-1][1] > (kept[-1][1] - (kept[-2][1] if len(kept) > 1 else 0)) / 2:
            kept.pop()
        first = kept[-1][1] if kept else 0
        name = write_segment(self._place, self.kind, self._segment(first))
        for old, _ in self._segments[len(kept) :]:
            if old != name:
                self._place.remove(f"{DIRECTORY}/{old}")
        self._segments = [*kept, (name, self.rows.rows)]
        self._unindexed = 0

    def drop_index(self) -> None:
        """Delete the index files."""
        for entry in self._place.list(DIRECTORY):
            if entry.name.startswith(f"{self.kind}-"):
                self._place.remove(f"{DIRECTORY}/{entry.name}")
        self._segments = []
        self._unindexed = len(self._numbers)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        segments = read_segments(self._place, self.kind)
        known = {name: facts for segment in segments.values() for name, facts in segment.files.items()}
        entries = {entry.name: entry for entry in self._place.list(self.kind)}
        trusted = {name: facts for name, facts in known.items() if _is(entries.get(name), facts)}
        self.holdings.add_all(trusted)
        tables, first = [], 0
        for file, segment in sorted(segments.items(), key=lambda item: item[1].commits[:1]):
            tables.append(self._of_segment(segment))
            first += tables[-1].num_rows
            self._segments.append((file, first))
        self._take_in([entry for name, entry in entries.items() if name not in trusted], tables, ())

    def _take_in(self, new: list[Entry], tables: list[pa.Table], gone: Any) -> None:
        """Add the rows of new files, and those of index segments; hide rows that no file holds any more."""
        new_files, new_tables = {}, []
        for entry in sorted(new, key=lambda entry: entry.name):
            found = self._examine(entry)
            if found is not None:
                facts, rows = found
                new_files[entry.name] = facts
                new_tables += rows
        if not (new_files or tables or gone):
            return
        self.holdings.discard(gone)
        self.holdings.add_all(new_files)
        lost = [number for number, commit in enumerate(self.rows.commits) if self.holdings.extent(commit) is None]
        self.rows.add_any([*tables, *new_tables], lost)

    def _examine(self, entry: Entry) -> tuple[FileFacts, list[pa.Table]] | None:
        """Read and check a part that no index knows: its facts, and the light rows that are new."""
        name = parse_name(entry.name)
        if name is None:
            self._on_damage(
                self.kind, entry.name, f"{self._place.uri}/{self.kind}/{entry.name} is no part of a sample store."
            )
            return None
        try:
            part = self._reader.part(entry.name)
        except FileNotFoundError:
            return None
        except DamagedPartError as error:
            self._on_damage(self.kind, entry.name, str(error))
            return None
        tables, first = [], 0
        for commit, rows in part.commits:
            if commit not in self._numbers:
                light = light_rows(self.kind, part.batch.slice(first, rows))
                tables.append(pa.Table.from_batches([located(self.kind, light, self._number(commit))]))
                self._unindexed += 1
            first += rows
        return FileFacts(entry.size, part.commits), tables

    def _of_segment(self, segment: Segment) -> pa.Table:
        """A segment's rows, without those that another segment has brought or that no file holds."""
        fresh = [commit not in self._numbers and self.holdings.extent(commit) is not None for commit in segment.commits]
        numbers = [self._number(commit) if new else -1 for commit, new in zip(segment.commits, fresh, strict=True)]
        commit = np.asarray(numbers, dtype=np.int32)[segment.rows["commit"].to_numpy()]
        rows = segment.rows.set_column(
            LOCATED[self.kind].get_field_index("commit"), LOCATED[self.kind].field("commit"), pa.array(commit)
        )
        return rows if all(fresh) else rows.filter(pa.array(commit >= 0))

    def _segment(self, first: int) -> Segment:
        rows = self.rows.table().slice(first)
        numbers, local = np.unique(rows["commit"].to_numpy(), return_inverse=True)
        field = LOCATED[self.kind].get_field_index("commit")
        rows = rows.set_column(field, LOCATED[self.kind].field("commit"), pa.array(local.astype(np.int32)))
        commits = [self.commit_of(number) for number in numbers]
        wanted = set(commits)
        files = {
            name: facts
            for name, facts in self.holdings.files.items()
            if len(facts.commits) > 1 or facts.commits[0][0] in wanted
        }
        return Segment(rows, commits, files)

    def _number(self, commit: Commit) -> int:
        number = self._numbers.setdefault(commit, len(self.rows.commits))
        if number == len(self.rows.commits):
            self.rows.commits.append(commit)
            self.next_sequence = max(self.next_sequence, commit.sequence + 1)
        return number

    def _lost(self, extent: Extent, reason: str) -> str:
        self.holdings.discard([extent.file])
        return self._on_damage(self.kind, extent.file, reason)


def _is(entry: Entry | None, facts: FileFacts) -> bool:
    return entry is not None and entry.size == facts.size
