"""The content of a part: an Arrow IPC file of one kind of rows, described by its own metadata.

Readers check the whole file against the checksum in its name before they use any of it.
"""

import json
from dataclasses import dataclass

import pyarrow as pa

from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.schemas import KINDS, SCHEMA_VERSION
from brain_align.common.store.format.names import commit_of, is_compacted, is_part, plain_file
from brain_align.common.store.format.part_map import Commits

_VERSION_KEY = b"brain.schema_version"
_KIND_KEY = b"brain.kind"
_WRITER_KEY = b"brain.writer"
_RUN_KEY = b"brain.run_id"
_COMMITS_KEY = b"brain.commits"


@dataclass(frozen=True)
class Part:
    """A verified part: all its rows, the commits that it holds, and the run that wrote it."""

    batch: pa.RecordBatch
    commits: Commits
    run_id: str


def encode_part(
    kind: str, batch: pa.RecordBatch, writer: str, run_id: str, commits: Commits | None = None
) -> pa.Buffer:
    """Return the bytes of a part, or of a compacted one, which lists its commits.

    The writer (host and process) is recorded for people who trace the origin of a part.

    Raises:
        ValueError: the rows do not have the columns of their kind.
    """
    if not batch.schema.equals(KINDS[kind]):  # readers would take the part for damaged
        raise ValueError(f"{kind} rows have columns {batch.schema}, not those of the store: {KINDS[kind]}")
    metadata = {_VERSION_KEY: str(SCHEMA_VERSION), _KIND_KEY: kind, _WRITER_KEY: writer, _RUN_KEY: run_id}
    if commits is not None:
        metadata[_COMMITS_KEY] = json.dumps(commits)
    return encode_table(batch, metadata)


def encode_table(batch: pa.RecordBatch, metadata: dict[bytes, str]) -> pa.Buffer:
    """Return one batch as an Arrow IPC file with metadata in its schema."""
    sink = pa.BufferOutputStream()
    tagged = batch.replace_schema_metadata(metadata)
    with pa.ipc.new_file(sink, tagged.schema) as file:
        file.write_batch(tagged)
    return sink.getvalue()


def decode_part(path: str, content: pa.Buffer, kind: str) -> Part:
    """Decode a part of a kind whose checksum has been verified, without copying.

    Raises:
        DamagedPartError: it is not a part of this kind.
        UserError: it has another version of the format.
    """
    file = path.rpartition("/")[2]
    try:
        reader = pa.ipc.open_file(content)
        if reader.num_record_batches != 1:
            raise DamagedPartError(f"{path} has {reader.num_record_batches} record batches, and a part has one.")
        tagged = reader.get_batch(0)
    except pa.ArrowInvalid as error:
        raise DamagedPartError(f"{path} is not an Arrow file: {error}.") from None
    metadata = tagged.schema.metadata or {}
    if metadata.get(_KIND_KEY, b"").decode() != kind:
        raise DamagedPartError(f"{path} does not hold {kind} rows of a sample store; move it out of the store.")
    check_version(path, int(metadata.get(_VERSION_KEY, b"0")))
    if not tagged.schema.equals(KINDS[kind]):
        names = tagged.schema.names
        raise DamagedPartError(f"{path} has columns {names}, expected the {kind} columns {KINDS[kind].names}.")
    batch = tagged.replace_schema_metadata(None)
    return Part(batch, _commits(path, file, metadata, batch.num_rows), metadata.get(_RUN_KEY, b"").decode())


def check_version(what: str, version: int) -> None:
    """Make sure that a file has the version of the format that this code reads and writes.

    Raises:
        UserError: it has another one.
    """
    if version != SCHEMA_VERSION:
        older = "start a new store by setting another run.dir or store.uri"
        raise UserError(
            f"{what} has format version {version}, and this brain-align reads version {SCHEMA_VERSION} only; "
            f"{older if version < SCHEMA_VERSION else 'upgrade brain-align to read it'}."
        )


def _commits(path: str, file: str, metadata: dict[bytes, bytes], rows: int) -> Commits:
    if not is_compacted(file):
        return [(commit_of(file), rows)]
    try:
        commits = [(str(commit), int(count)) for commit, count in json.loads(metadata[_COMMITS_KEY])]
    except (KeyError, ValueError, TypeError):
        raise DamagedPartError(f"{path} does not state which commits it holds.") from None
    if sum(count for _, count in commits) != rows or not all(is_part(plain_file(commit)) for commit, _ in commits):
        raise DamagedPartError(f"{path} holds {rows} rows, not the number that its list of commits states.")
    return commits
