"""Index files: summary rows on disk, so that opening a store need not read its parts.

    index/groups-<checksum>.arrow

An index file holds the summary rows of some commits, the sizes of these commits' own files, and the commits of some
compacted parts. It is built from verified parts and has a checksum of its own. What it states about files that are gone
or have another size is ignored. Deleting all index files costs nothing but the time to rebuild them.
"""

import json
import logging
from dataclasses import dataclass

import pyarrow as pa

from brain_align.common.store.files.backends import StorageBackend
from brain_align.common.store.format.names import checksum, checksum_of
from brain_align.common.store.format.part_files import encode_table
from brain_align.common.store.format.part_map import Commits
from brain_align.common.store.table.row_index import LOCATED

_LOG = logging.getLogger(__name__)
DIRECTORY = "index"
_VERSION = 2  # of index files only
_VERSION_KEY = b"brain.index_version"
_COMMITS_KEY = b"brain.commits"
_SIZES_KEY = b"brain.sizes"
_COMPACTED_KEY = b"brain.compacted"
_ATTEMPTS = 5


@dataclass(frozen=True)
class IndexFile:
    """The content of one index file.

    Attributes:
        rows: summary rows with their locations; their `commit` numbers index `commits`.
        commits: the commits that the rows belong to.
        sizes: [commits] bytes of the commit's own part; None if that was gone already.
        compacted: size and commits of some compacted parts.
    """

    rows: pa.Table
    commits: list[str]
    sizes: list[int | None]
    compacted: dict[str, tuple[int, Commits]]


def write_index_file(backend: StorageBackend, kind: str, index_file: IndexFile) -> str:
    """Write an index file; return its name."""
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
    """Return the index files of a kind by name; None for unusable ones, which are logged."""
    for _attempt in range(_ATTEMPTS):
        index_files: dict[str, IndexFile | None] = {}
        try:
            for entry in sorted(backend.list(DIRECTORY), key=lambda entry: entry.name):
                if entry.name.startswith(f"{kind}-"):
                    index_files[entry.name] = _read(backend, kind, entry.name)
        except FileNotFoundError:
            continue  # a writer has just replaced one by a larger one
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
        raise ValueError("it has another version")
    commits, sizes = json.loads(metadata[_COMMITS_KEY]), json.loads(metadata[_SIZES_KEY])
    return IndexFile(table.replace_schema_metadata(None), commits, sizes, json.loads(metadata[_COMPACTED_KEY]))
