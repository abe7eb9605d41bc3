"""Index files: light rows on disk, so that opening a store need not read its parts.

    index/groups-<checksum>.arrow

A index_file holds the light rows of some commits, the sizes of these commits' own files, and what some compacted parts
hold. It is made from parts that were checked, and carries its own checksum; what it says of files that are not there,
or not of that size, is not used. Deleting all index_files loses nothing but the time to make them again.
"""

import json
import logging
from dataclasses import dataclass

import pyarrow as pa

from brain_align.common.store.files.backends import StorageBackend
from brain_align.common.store.format.checksums import checksum, checksum_of
from brain_align.common.store.format.part_files import encode_table
from brain_align.common.store.format.part_map import Commits
from brain_align.common.store.table.row_index import LOCATED

_LOG = logging.getLogger(__name__)
DIRECTORY = "index"
_VERSION = 2  # of index files alone
_VERSION_KEY = b"brain.index_version"
_COMMITS_KEY = b"brain.commits"
_SIZES_KEY = b"brain.sizes"
_COMPACTED_KEY = b"brain.compacted"
_ATTEMPTS = 5


@dataclass(frozen=True)
class IndexFile:
    """A part of the index.

    Attributes:
        rows: light rows with their places; their `commit` numbers count `commits`.
        commits: which commits the rows are of.
        sizes: [commits] bytes of the commit's own part; None where that was gone already.
        compacted: some compacted parts: size and what they hold.
    """

    rows: pa.Table
    commits: list[str]
    sizes: list[int | None]
    compacted: dict[str, tuple[int, Commits]]


def write_index_file(backend: StorageBackend, kind: str, index_file: IndexFile) -> str:
    """Write a index_file; returns its file name."""
    metadata = {
        _VERSION_KEY: str(_VERSION),
        _COMMITS_KEY: json.dumps(index_file.commits),
        _SIZES_KEY: json.dumps(index_file.sizes),
        _COMPACTED_KEY: json.dumps(index_file.compacted),
    }
    batches = index_file.rows.combine_chunks().to_batches()
    content = encode_table(batches[0] if batches else pa.RecordBatch.from_pylist([], schema=LOCATED[kind]), metadata)
    name = f"{kind}-{checksum(content)}.arrow"
    backend.put(DIRECTORY, name, content)
    return name


def read_index_files(backend: StorageBackend, kind: str) -> dict[str, IndexFile | None]:
    """The index_files of a kind by file name; None for unusable ones, with a warning in the log."""
    for _attempt in range(_ATTEMPTS):
        index_files: dict[str, IndexFile | None] = {}
        try:
            for entry in sorted(backend.list(DIRECTORY), key=lambda entry: entry.name):
                if entry.name.startswith(f"{kind}-"):
                    index_files[entry.name] = _read(backend, kind, entry.name)
        except FileNotFoundError:
            continue  # a writer has just replaced it by a larger one
        return index_files
    return {}  # then the parts themselves are read


def _read(backend: StorageBackend, kind: str, name: str) -> IndexFile | None:
    try:
        return _decoded(kind, backend.read_checked(f"{DIRECTORY}/{name}", checksum_of(name)))
    except (ValueError, KeyError, TypeError) as error:  # pa.ArrowInvalid is a ValueError
        _LOG.warning("The index file %s/%s/%s is not used: %s", backend.uri, DIRECTORY, name, error)
        return None


def _decoded(kind: str, content: pa.Buffer | None) -> IndexFile:
    if content is None:
        raise ValueError("its bytes do not match the checksum in its name")
    table = pa.ipc.open_file(content).read_all()
    metadata = table.schema.metadata
    if int(metadata[_VERSION_KEY]) != _VERSION or not table.schema.equals(LOCATED[kind]):
        raise ValueError("it is of another version")
    commits, sizes = json.loads(metadata[_COMMITS_KEY]), json.loads(metadata[_SIZES_KEY])
    return IndexFile(table.replace_schema_metadata(None), commits, sizes, json.loads(metadata[_COMPACTED_KEY]))
