"""The map from commits to the parts that hold them. After a compaction, several parts may hold the same commit."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from brain_align.common.store.format.names import commit_of, is_compacted, plain_file

Commits = list[tuple[str, int]]
"""Commits with the number of rows of each, in the order of a file's rows."""


class Extent(NamedTuple):
    """The rows of a commit: `rows` rows of a file from row `first` on, or all rows of the file where `rows` is None."""

    file: str
    first: int
    rows: int | None


class PartMap:
    """The parts of one kind, and for each commit the part to read it from.

    Of several parts that hold the same commit, the one with the most commits is read; ties go to the name that sorts
    first. All readers of the same files therefore agree, and a file that nobody reads can be removed.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}  # bytes of every part
        self.compacted: dict[str, Commits] = {}  # the commits of the compacted ones among them
        self._extents: dict[str, Extent] = {}  # by commit, for commits in compacted parts

    def add(self, sizes: Mapping[str, int], compacted: Mapping[str, Commits]) -> None:
        """Add parts, and the commits of the compacted ones among them."""
        self.sizes.update(sizes)
        if compacted:
            self.compacted.update(compacted)
            self._choose()

    def discard(self, files: Iterable[str]) -> None:
        """Remove parts that are gone or must not be read any more."""
        compacted = False
        for file in files:
            self.sizes.pop(file, None)
            compacted |= self.compacted.pop(file, None) is not None
        if compacted:
            self._choose()

    def extent(self, commit: str) -> Extent | None:
        """Return where to read a commit, or None if no part holds it."""
        if commit in self._extents:
            return self._extents[commit]
        file = plain_file(commit)
        return Extent(file, 0, None) if file in self.sizes else None

    def commits(self, file: str) -> list[str]:
        """Return the commits that a part holds."""
        return [commit for commit, _ in self.compacted[file]] if is_compacted(file) else [commit_of(file)]

    def superseded(self) -> dict[str, set[str]]:
        """Return the parts that nobody reads, each with the parts that are read in its place."""
        read = {extent.file for extent in self._extents.values()}
        return {
            file: {self._extents[commit].file for commit in self.commits(file)}
            for file in self.sizes
            if file not in read and all(commit in self._extents for commit in self.commits(file))
        }

    def read_files(self) -> list[str]:
        """Return the parts that are read, in the order of their first commits."""
        return sorted(self.sizes.keys() - self.superseded().keys(), key=lambda file: self.commits(file)[0])

    def _choose(self) -> None:
        self._extents = {}
        for file, commits in sorted(self.compacted.items(), key=lambda item: (-len(item[1]), item[0])):
            first = 0
            for commit, rows in commits:
                self._extents.setdefault(commit, Extent(file, first, rows))
                first += rows
