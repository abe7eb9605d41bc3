"""The content of a part: an Arrow IPC file of one kind of rows that says of itself what it is.

Whoever reads a part checks the whole file against the checksum in its name before using any of it.
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
    """A part that was checked.

    Attributes:
        batch: all its rows, without metadata.
        commits: which commits it holds, in the order of their rows, and how many rows each has.
        run_id: of the run that wrote it; None in format 1.
    """

    batch: pa.RecordBatch
    commits: Commits
    run_id: str | None


def encode_part(
    kind: str, batch: pa.RecordBatch, writer: str, run_id: str, commits: Commits | None = None
) -> pa.Buffer:
    """The bytes of a part.

    Args:
        kind: of the rows.
        batch: the rows.
        writer: host and process, for people who look for the origin of a part.
        run_id: the store's run.
        commits: for a compacted part, what it holds.

    Raises:
        ValueError: the rows have not the columns of their kind.
    """
    if not batch.schema.equals(KINDS[kind]):  # whoever reads it would take it for damaged
        raise ValueError(f"{kind} rows have columns {batch.schema}, not those of the store: {KINDS[kind]}")
    metadata = {_VERSION_KEY: str(SCHEMA_VERSION), _KIND_KEY: kind, _WRITER_KEY: writer, _RUN_KEY: run_id}
    if commits is not None:
        metadata[_COMMITS_KEY] = json.dumps(commits)
    return encode_table(batch, metadata)


def encode_table(batch: pa.RecordBatch, metadata: dict[bytes, str]) -> pa.Buffer:
    """One batch as an Arrow IPC file with metadata in its schema."""
    sink = pa.BufferOutputStream()
    tagged = batch.replace_schema_metadata(metadata)
    with pa.ipc.new_file(sink, tagged.schema) as file:
        file.write_batch(tagged)
    return sink.getvalue()


def decode_part(path: str, content: pa.Buffer, kind: str) -> Part:
    """Open a part whose checksum has been verified, without copying.

    Args:
        path: of the part, for messages; its last component is the file's name.
        content: all of it.
        kind: what it must hold.

    Raises:
        DamagedPartError: it is no part of this kind.
        UserError: a newer version of the format.
    """
    file = path.rpartition("/")[2]
    try:
        reader = pa.ipc.open_file(content)
        if reader.num_record_batches != 1:
            raise DamagedPartError(f"{path} has {reader.num_record_batches} record batches, and a part has one.")
        tagged = reader.get_batch(0)
    except pa.ArrowInvalid as error:
        raise DamagedPartError(f"{path} is no Arrow file: {error}.") from None
    metadata = tagged.schema.metadata or {}
    _check(path, tagged.schema, metadata, kind)
    batch = tagged.replace_schema_metadata(None)
    run_id = metadata[_RUN_KEY].decode() if _RUN_KEY in metadata else None
    return Part(batch, _commits(path, file, metadata, batch.num_rows), run_id)


def _check(path: str, found: pa.Schema, metadata: dict[bytes, bytes], kind: str) -> None:
    if metadata.get(_KIND_KEY, b"").decode() != kind:
        raise DamagedPartError(f"{path} does not hold {kind} rows of a sample store; move it out of the store.")
    version = int(metadata.get(_VERSION_KEY, b"0"))
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} was written by a newer brain-align (schema {version}, this one reads up to {SCHEMA_VERSION}); "
            f"upgrade brain-align to read it."
        )
    if not found.equals(KINDS[kind]):
        raise DamagedPartError(f"{path} has columns {found.names}, expected the {kind} columns {KINDS[kind].names}.")


def _commits(path: str, file: str, metadata: dict[bytes, bytes], rows: int) -> Commits:
    if not is_compacted(file):
        return [(commit_of(file), rows)]
    try:
        commits = [(str(commit), int(count)) for commit, count in json.loads(metadata[_COMMITS_KEY])]
    except (KeyError, ValueError, TypeError):
        raise DamagedPartError(f"{path} does not say which commits it holds.") from None
    if sum(count for _, count in commits) != rows or not all(is_part(plain_file(commit)) for commit, _ in commits):
        raise DamagedPartError(f"{path} holds {rows} rows, not those of the commits that it names.")
    return commits
