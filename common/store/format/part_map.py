"""Which file holds which commit. Compaction makes that a question: a commit may stand in several files at once."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from brain_align.common.store.format.names import commit_of, is_compacted, plain_file

Commits = list[tuple[str, int]]
"""Commits with the number of rows of each, in the order of a file's rows."""


class Extent(NamedTuple):
    """Where a commit's rows stand: `rows` rows of a file from `first` on, or all of them where `rows` is None."""

    file: str
    first: int
    rows: int | None


class PartMap:
    """The parts of one kind, and for each commit the part to read it from.

    Of several parts with the same commit the one with the most commits is read, then the one whose name comes first:
    all readers of the same files agree, so that a file which nobody reads can be removed.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}  # of every part, in bytes
        self.compacted: dict[str, Commits] = {}  # what the compacted ones among them hold
        self._extents: dict[str, Extent] = {}  # of commits that a compacted part holds

    def add(self, sizes: Mapping[str, int], compacted: Mapping[str, Commits]) -> None:
        """Parts have appeared, some of them compacted ones."""
        self.sizes.update(sizes)
        if compacted:
            self.compacted.update(compacted)
            self._choose()

    def discard(self, files: Iterable[str]) -> None:
        """Parts are gone, or are not to be read any more."""
        compacted = False
        for file in files:
            self.sizes.pop(file, None)
            compacted |= self.compacted.pop(file, None) is not None
        if compacted:
            self._choose()

    def extent(self, commit: str) -> Extent | None:
        """Where to read a commit; None if no part holds it."""
        if commit in self._extents:
            return self._extents[commit]
        file = plain_file(commit)
        return Extent(file, 0, None) if file in self.sizes else None

    def commits(self, file: str) -> list[str]:
        """What a part holds."""
        return [commit for commit, _ in self.compacted[file]] if is_compacted(file) else [commit_of(file)]

    def superseded(self) -> dict[str, set[str]]:
        """Parts that nobody reads, each with the parts that are read in its place."""
        read = {extent.file for extent in self._extents.values()}
        return {
            file: {self._extents[commit].file for commit in self.commits(file)}
            for file in self.sizes
            if file not in read and all(commit in self._extents for commit in self.commits(file))
        }

    def read_files(self) -> list[str]:
        """The parts that are read, in the order of their first commits."""
        return sorted(self.sizes.keys() - self.superseded().keys(), key=lambda file: self.commits(file)[0])

    def _choose(self) -> None:
        self._extents = {}
        for file, commits in sorted(self.compacted.items(), key=lambda item: (-len(item[1]), item[0])):
            first = 0
            for commit, rows in commits:
                self._extents.setdefault(commit, Extent(file, first, rows))
                first += rows
