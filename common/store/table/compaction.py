"""Compaction: many small parts become a large one, while others read and write.

A compacted part holds the same commits, in their order, so nothing that a reader sees changes: neither which rows there
are, nor their order, nor which of two rows with one key counts. The small parts stay where they are until a grace time
has passed; a reader who meets a part that is gone finds its commits in the larger one.
"""

import time
from dataclasses import dataclass

import pyarrow as pa

from brain_align.common.store.files.backends import StorageBackend
from brain_align.common.store.format.checksums import checksum, checksum_of
from brain_align.common.store.format.names import compacted_file, sequence_of
from brain_align.common.store.format.part_files import encode_part
from brain_align.common.store.format.part_map import Commits
from brain_align.common.store.table.catalogue import Catalogue

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
        largest: bytes; larger parts are left alone.
        target: bytes of a compacted part, at most.
        fewest: how many parts are worth it.
    """

    largest: int
    target: int
    fewest: int


@dataclass(frozen=True)
class _Compacted:
    """A compacted part before it is written: its name, its bytes, and what it holds."""

    file: str
    content: pa.Buffer
    commits: Commits


SMALL = Sizes(largest=64 << 10, target=8 << 20, fewest=256)
"""What a writer compacts while it goes: scores and steps, a few KiB each, of which there are hundreds of thousands."""
LARGE = Sizes(largest=32 << 20, target=64 << 20, fewest=2)
"""What `brain store compact` does."""


def compact(backend: StorageBackend, catalogue: Catalogue, author: Author, sizes: Sizes) -> int:
    """Write the compacted parts that are worth it; returns how many parts they replace.

    Parts that another has removed meanwhile are left out, so that what `brain store gc` has taken stays away.

    Raises:
        DamagedPartError: a part to be compacted is damaged; nothing was written for it.
        OSError: the place cannot be written.
    """
    replaced = 0
    for files in _worth_it(catalogue, sizes):
        commits = {commit for file in files for commit in catalogue.part_map.commits(file)}
        compacted = _encoded(catalogue, author, sorted(commits))
        if set(files).issubset(catalogue.files_there()):  # what was read may have been in memory for long
            _put(backend, catalogue, compacted)
            replaced += len(files)
    return replaced


def remove_superseded(backend: StorageBackend, catalogue: Catalogue, grace: float = GRACE_SECONDS) -> list[str]:
    """Delete parts whose commits are all read from other parts for at least the grace time; returns their names.

    The parts that are read in their place are verified on the disk first. A clock set back keeps parts longer.
    """
    superseded = catalogue.part_map.superseded()
    if not superseded:
        return []
    now, modified = time.time(), {entry.name: entry.modified for entry in backend.list(catalogue.kind)}
    safe = {
        file
        for file in set().union(*superseded.values())
        if file in modified and now - modified[file] >= grace and _is_good(backend, catalogue.kind, file)
    }
    removed = [name for name, instead in superseded.items() if instead <= safe]
    for name in removed:
        backend.remove(f"{catalogue.kind}/{name}")
    catalogue.part_map.discard(removed)
    return removed


def _is_good(backend: StorageBackend, kind: str, file: str) -> bool:
    try:
        return backend.read_checked(f"{kind}/{file}", checksum_of(file)) is not None
    except FileNotFoundError:
        return False


def rewrite_without(backend: StorageBackend, catalogue: Catalogue, author: Author, commits: set[str]) -> int:
    """Delete all parts with some of these commits; what else is in them is written anew before. Returns how many."""
    files = [file for file in catalogue.part_map.sizes if commits.intersection(catalogue.part_map.commits(file))]
    for file in files:
        staying = [commit for commit in catalogue.part_map.commits(file) if commit not in commits]
        if staying:
            _put(backend, catalogue, _encoded(catalogue, author, staying))
        backend.remove(f"{catalogue.kind}/{file}")
    return len(files)


def _worth_it(catalogue: Catalogue, sizes: Sizes) -> list[list[str]]:
    """Runs of small parts, in the order of their commits, that make a part of about the target size."""
    runs: list[list[str]] = []
    run: list[str] = []
    size = 0
    sizes_of = catalogue.part_map.sizes
    for file in catalogue.files_there():
        if sizes_of[file] > sizes.largest:
            continue
        if run and size + sizes_of[file] > sizes.target:
            runs.append(run)
            run, size = [], 0
        run.append(file)
        size += sizes_of[file]
    return [run for run in [*runs, run] if len(run) >= sizes.fewest]


def _encoded(catalogue: Catalogue, author: Author, commits: list[str]) -> _Compacted:
    batches = catalogue.read_again(commits)  # damaged rows must not get a valid checksum
    held = [(commit, batch.num_rows) for commit, batch in zip(commits, batches, strict=True)]
    batch = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    content = encode_part(catalogue.kind, batch, author.origin, author.run_id, held)
    return _Compacted(compacted_file(sequence_of(commits[0]), author.writer, checksum(content)), content, held)


def _put(backend: StorageBackend, catalogue: Catalogue, compacted: _Compacted) -> None:
    backend.put(catalogue.kind, compacted.file, compacted.content)
    catalogue.part_map.add({compacted.file: compacted.content.size}, {compacted.file: compacted.commits})
