"""Compaction: many small parts become a large one, while others read and write.

A compacted part holds the same commits, in their order, so nothing that a reader sees changes: neither which rows there
are, nor their order, nor which of two rows with one key counts. The small parts stay where they are until a grace time
has passed; a reader who meets a part that is gone finds its commits in the larger one.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from common.storage.catalogue import Catalogue
from common.storage.holdings import FileFacts
from common.storage.names import Commit, PartName, checksum
from common.storage.part_files import encode_part
from common.storage.places import Place

GRACE_SECONDS = 3600.0
"""How long a part that was compacted away stays: longer than anybody takes from listing a folder to reading a part."""


@dataclass(frozen=True)
class Author:
    """Who writes: the writer's name in part names, where it runs, and the store's run."""

    writer: str
    origin: str
    run_id: str


@dataclass(frozen=True)
class Sizes:
    """Which parts are compacted.

    Attributes:
        target: bytes of a compacted part, about; parts of more than half of it are left alone.
        fewest: how many parts are worth it.
    """

    target: int
    fewest: int


SMALL = Sizes(target=8 << 20, fewest=256)
"""What a writer compacts while it goes: scores and steps, a few KiB each, of which there are hundreds of thousands."""
LARGE = Sizes(target=64 << 20, fewest=2)
"""What `brain store compact` does."""


def compact(place: Place, catalogue: Catalogue, author: Author, sizes: Sizes) -> int:
    """Write the compacted parts that are worth it; returns how many parts they replace.

    Raises:
        DamagedPartError: a part to be compacted is damaged; nothing was written for it.
        OSError: the place cannot be written.
    """
    replaced = 0
    for files in _worth_it(catalogue, sizes):
        _write(place, catalogue, author, files)
        replaced += len(files)
    return replaced


def remove_superseded(place: Place, catalogue: Catalogue, grace: float = GRACE_SECONDS) -> list[str]:
    """Delete parts whose commits are all read from other parts for at least the grace time; returns their names.

    The parts that are read in their place are verified first. A clock that went backwards keeps parts longer.
    """
    superseded = catalogue.holdings.superseded()
    if not superseded:
        return []
    modified = {entry.name: entry.modified for entry in place.list(catalogue.kind)}
    removed = []
    for name, instead in superseded.items():
        old_enough = all(time.time() - modified.get(other, time.time()) >= grace for other in instead)
        if old_enough and all(catalogue.is_good(other) for other in instead):
            place.remove(f"{catalogue.kind}/{name}")
            removed.append(name)
    catalogue.holdings.discard(removed)
    return removed


def _worth_it(catalogue: Catalogue, sizes: Sizes) -> list[list[str]]:
    """Runs of small parts, in the order of their commits, that make a part of about the target size."""
    runs: list[list[str]] = []
    run: list[str] = []
    size = 0
    for name, facts in _read_in_order(catalogue):
        if facts.size > sizes.target // 2:
            continue
        if run and size + facts.size > sizes.target:
            runs.append(run)
            run, size = [], 0
        run.append(name)
        size += facts.size
    return [run for run in [*runs, run] if len(run) >= sizes.fewest]


def _read_in_order(catalogue: Catalogue) -> Iterator[tuple[str, FileFacts]]:
    superseded = catalogue.holdings.superseded()
    files = [item for item in catalogue.holdings.files.items() if item[0] not in superseded]
    return iter(sorted(files, key=lambda item: item[1].commits[0]))


def _write(place: Place, catalogue: Catalogue, author: Author, files: list[str]) -> None:
    commits: list[tuple[Commit, int]] = []
    for file in files:
        commits += catalogue.holdings.files[file].commits
    unique = sorted(dict(commits).items())
    batches = [catalogue.read(commit) for commit, _ in unique]
    batch = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    content = encode_part(catalogue.kind, batch, author.origin, author.run_id, unique)
    name = PartName(Commit(unique[0][0].sequence, author.writer, checksum(content)), compacted=True)
    place.put(catalogue.kind, lambda: str(name), content)
    catalogue.compacted(name, FileFacts(content.size, unique))
