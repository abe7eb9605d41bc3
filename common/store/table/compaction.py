"""Compaction: merge many small parts into a large one, while others read and write.

A compacted part holds the same commits in the same order, so nothing that a reader sees changes: neither the rows, nor
their order, nor which of two rows with the same key counts. The small parts stay for a grace period; a reader that
finds a part gone finds its commits in the larger one.
"""

from dataclasses import dataclass

import pyarrow as pa

from brain_align.common.store.files.backends import StorageBackend
from brain_align.common.store.format.names import checksum, compacted_file, sequence_of
from brain_align.common.store.format.part_files import encode_part
from brain_align.common.store.format.part_map import Commits
from brain_align.common.store.table.catalogue import Catalogue

GRACE_SECONDS = 3600.0
"""Seconds for which a replaced part stays: longer than any reader takes from listing a folder to reading a part."""


@dataclass(frozen=True)
class Author:
    """The writer of parts: its name in file names, its host and process, and the store's run."""

    writer: str
    origin: str
    run_id: str


@dataclass(frozen=True)
class Sizes:
    """The parts that a compaction takes."""

    largest: int  # bytes; larger parts are left alone
    target: int  # maximum bytes of a compacted part
    fewest: int  # minimum number of parts that are merged into one


SMALL = Sizes(largest=64 << 10, target=8 << 20, fewest=256)
"""Compaction by writers as they append: scores and steps, a few KiB each, of which there are hundreds of thousands."""
LARGE = Sizes(largest=32 << 20, target=64 << 20, fewest=2)
"""Compaction by `brain store compact`."""


def compact(backend: StorageBackend, catalogue: Catalogue, author: Author, sizes: Sizes) -> int:
    """Write compacted parts for all sufficiently long runs of small parts; return how many parts they replace.

    Parts that another process removed meanwhile are skipped, so that rows deleted by `brain store gc` do not return.

    Raises:
        DamagedPartError: a part to be compacted is damaged; nothing was written for it.
        OSError: the backend cannot be written.
    """
    replaced = 0
    for files in _worth_it(catalogue, sizes):
        commits = {commit for file in files for commit in catalogue.part_map.commits(file)}
        compacted = _encoded(catalogue, author, sorted(commits))
        if set(files).issubset(catalogue.files_there()):  # what was read may have been in memory for a long time
            _put(backend, catalogue, *compacted)
            replaced += len(files)
    return replaced


def remove_superseded(backend: StorageBackend, catalogue: Catalogue, grace: float = GRACE_SECONDS) -> list[str]:
    """Delete parts whose commits have been read from other parts for at least the grace period; return their names.

    The parts that are read instead are first verified on disk.
    """
    superseded = catalogue.part_map.superseded()
    if not superseded:
        return []
    now, modified = backend.time(), {entry.name: entry.modified for entry in backend.list(catalogue.kind)}
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
        return backend.read_checked(f"{kind}/{file}") is not None
    except FileNotFoundError:
        return False


def rewrite_without(backend: StorageBackend, catalogue: Catalogue, author: Author, commits: set[str]) -> int:
    """Delete all parts that hold any of these commits, after rewriting their other commits; return how many."""
    files = [file for file in catalogue.part_map.sizes if commits.intersection(catalogue.part_map.commits(file))]
    for file in files:
        staying = [commit for commit in catalogue.part_map.commits(file) if commit not in commits]
        if staying:
            _put(backend, catalogue, *_encoded(catalogue, author, staying))
        backend.remove(f"{catalogue.kind}/{file}")
    return len(files)


def _worth_it(catalogue: Catalogue, sizes: Sizes) -> list[list[str]]:
    """Return runs of small parts, in the order of their commits, each to be merged into a part of the target size."""
    runs: list[list[str]] = [[]]
    total = 0
    for file in catalogue.files_there():
        size = catalogue.part_map.sizes[file]
        if size <= sizes.largest:
            if total + size > sizes.target:
                runs.append([])
                total = 0
            runs[-1].append(file)
            total += size
    return [run for run in runs if len(run) >= sizes.fewest]


def _encoded(catalogue: Catalogue, author: Author, commits: list[str]) -> tuple[str, pa.Buffer, Commits]:
    """Return the name, the bytes and the commits of a compacted part."""
    batches = catalogue.read_again(commits)  # damaged rows must not get a valid checksum
    held = [(commit, batch.num_rows) for commit, batch in zip(commits, batches, strict=True)]
    batch = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    content = encode_part(catalogue.kind, batch, author.origin, author.run_id, held)
    return compacted_file(sequence_of(commits[0]), author.writer, checksum(content)), content, held


def _put(backend: StorageBackend, catalogue: Catalogue, file: str, content: pa.Buffer, commits: Commits) -> None:
    backend.put(catalogue.kind, file, content)
    catalogue.part_map.add({file: content.size}, {file: commits})
