"""Index files: light rows on disk, so that opening a store need not read its parts.

    index/groups-<checksum>.arrow

A segment holds the light rows of some commits, and for each file that holds these its size and its commits. It is made
from parts that were checked, and carries its own checksum; what it says of files that are not there (or not of that
size) is not used. Deleting all segments loses nothing but the time to make them again.
"""

import json
import logging
from dataclasses import dataclass

import pyarrow as pa

from common.schemas import SCHEMA_VERSION
from common.storage.holdings import FileFacts
from common.storage.names import Commit, checksum, parse_commit
from common.storage.part_files import encode_table
from common.storage.places import Place
from common.storage.row_index import LOCATED

_LOG = logging.getLogger(__name__)
DIRECTORY = "index"
_VERSION_KEY = b"brain.index_version"
_COMMITS_KEY = b"brain.commits"
_FILES_KEY = b"brain.files"
_ATTEMPTS = 5


@dataclass(frozen=True)
class Segment:
    """A part of the index.

    Attributes:
        rows: light rows with their places; their `commit` numbers count `commits`.
        commits: which commits the rows are of.
        files: the parts known to hold these and others.
    """

    rows: pa.Table
    commits: list[Commit]
    files: dict[str, FileFacts]


def write_segment(place: Place, kind: str, segment: Segment) -> str:
    """Write a segment; returns its file name."""
    files = [[name, facts.size, _commits(name, facts)] for name, facts in segment.files.items()]
    metadata = {
        _VERSION_KEY: str(SCHEMA_VERSION),
        _COMMITS_KEY: json.dumps([str(commit) for commit in segment.commits]),
        _FILES_KEY: json.dumps(files),
    }
    batches = segment.rows.combine_chunks().to_batches()
    content = encode_table(batches[0] if batches else pa.RecordBatch.from_pylist([], schema=LOCATED[kind]), metadata)
    return place.put(DIRECTORY, lambda: f"{kind}-{checksum(content)}.arrow", content)


def read_segments(place: Place, kind: str) -> dict[str, Segment]:
    """The segments of a kind by file name; unusable ones are left out, with a warning in the log."""
    for _attempt in range(_ATTEMPTS):
        segments = {}
        try:
            for entry in sorted(place.list(DIRECTORY), key=lambda entry: entry.name):
                if entry.name.startswith(f"{kind}-"):
                    segments[entry.name] = _read(place, kind, entry.name)
        except FileNotFoundError:
            continue  # a writer has just replaced it by a larger one
        return {name: segment for name, segment in segments.items() if segment is not None}
    return {}  # then the parts themselves are read


def _read(place: Place, kind: str, name: str) -> Segment | None:
    try:
        return _decoded(kind, name, place.read(f"{DIRECTORY}/{name}"))
    except (ValueError, KeyError, TypeError) as error:  # pa.ArrowInvalid is a ValueError
        _LOG.warning("The index file %s/%s/%s is not used: %s", place.uri, DIRECTORY, name, error)
        return None


def _decoded(kind: str, name: str, content: pa.Buffer) -> Segment:
    if name != f"{kind}-{checksum(content)}.arrow":
        raise ValueError("its bytes do not match the checksum in its name")
    table = pa.ipc.open_file(content).read_all()
    metadata = table.schema.metadata
    if int(metadata[_VERSION_KEY]) != SCHEMA_VERSION or not table.schema.equals(LOCATED[kind]):
        raise ValueError("it is of another version")
    commits = [parse_commit(text) for text in json.loads(metadata[_COMMITS_KEY])]
    files = {file: FileFacts(size, _parsed(file, held)) for file, size, held in json.loads(metadata[_FILES_KEY])}
    return Segment(table.replace_schema_metadata(None), commits, files)


def _commits(file: str, facts: FileFacts) -> int | list[list[str | int]]:
    """What a file holds, in short: the number of its rows where its name says the rest."""
    if not file.startswith("compact"):
        return facts.commits[0][1]
    return [[str(commit), rows] for commit, rows in facts.commits]


def _parsed(file: str, held: int | list[tuple[str, int]]) -> list[tuple[Commit, int]]:
    if isinstance(held, int):
        return [(parse_commit(file.removesuffix(".arrow")), held)]
    return [(parse_commit(text), rows) for text, rows in held]
