"""Which file holds which commit. Compaction makes that a question: a commit may stand in several files at once."""

from collections.abc import Iterable
from dataclasses import dataclass

from common.storage.names import Commit


@dataclass(frozen=True)
class FileFacts:
    """What is known of a part without reading it.

    Attributes:
        size: bytes.
        commits: what it holds, in the order of its rows, and the number of rows of each.
    """

    size: int
    commits: list[tuple[Commit, int]]


@dataclass(frozen=True)
class Extent:
    """Where a commit's rows stand: rows `first` to `first + rows` of a file."""

    file: str
    first: int
    rows: int


class Holdings:
    """The files of one kind, and for each commit the file to read it from.

    Of several files with the same commit the one with the most commits is read, then the one whose name comes first:
    all readers of the same files agree, so that a file which nobody reads can be removed.
    """

    def __init__(self) -> None:
        self.files: dict[str, FileFacts] = {}
        self._extents: dict[Commit, Extent] = {}

    def add(self, name: str, facts: FileFacts) -> None:
        """A file has appeared."""
        self.files[name] = facts
        if len(facts.commits) == 1 and facts.commits[0][0] not in self._extents:
            self._hold(name, facts)
        else:
            self._choose()

    def add_all(self, files: dict[str, FileFacts]) -> None:
        """Many files have appeared."""
        self.files.update(files)
        self._choose()

    def discard(self, names: Iterable[str]) -> None:
        """Files are gone, or are not to be read any more."""
        for name in names:
            self.files.pop(name, None)
        self._choose()

    def extent(self, commit: Commit) -> Extent | None:
        """Where to read a commit; None if no file holds it."""
        return self._extents.get(commit)

    def superseded(self) -> dict[str, set[str]]:
        """Files that nobody reads, each with the files that are read in its place."""
        read = {extent.file for extent in self._extents.values()}
        return {
            name: {self._extents[commit].file for commit, _ in facts.commits}
            for name, facts in self.files.items()
            if name not in read
        }

    def _choose(self) -> None:
        self._extents = {}
        for name in sorted(self.files, key=lambda name: (-len(self.files[name].commits), name)):
            self._hold(name, self.files[name])

    def _hold(self, name: str, facts: FileFacts) -> None:
        first = 0
        for commit, rows in facts.commits:
            self._extents.setdefault(commit, Extent(name, first, rows))
            first += rows
