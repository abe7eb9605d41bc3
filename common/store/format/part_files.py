"""The content of a part: an Arrow IPC file of one kind of rows, described by its own metadata.

Readers check the whole file against the checksum in its name before they use any of it, and validate what others wrote.
"""

import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.errors import DamagedPartError, UserError, first_line
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


def decode_table(content: pa.Buffer, *, validate: bool = True) -> pa.RecordBatch:
    """Return the batch of an Arrow IPC file of one, without copying.

    `validate` checks every offset, size, index and text: without it, a file that was not written by this code could
    let a reader of its rows read elsewhere in memory, or beyond it.

    Raises:
        ValueError: it is not such a file.
    """
    try:
        reader = pa.ipc.open_file(content)
        if reader.num_record_batches != 1:
            raise ValueError(f"it has {reader.num_record_batches} record batches instead of one")
        batch = reader.get_batch(0)
        if validate:
            batch.validate(full=True)
    except (pa.ArrowException, OSError, MemoryError) as error:  # Arrow raises the last two for wrong sizes
        raise ValueError(f"it is not a whole Arrow file: {first_line(error).rstrip('.')}") from None
    return batch


def decode_part(path: str, content: pa.Buffer, kind: str, *, validate: bool = True) -> Part:
    """Decode a part of a kind whose checksum has been verified, without copying; `validate`: see `decode_table`.

    Raises:
        DamagedPartError: it is not a part of this kind.
        UserError: it has another version of the format.
    """
    file = path.rpartition("/")[2]
    try:
        tagged = decode_table(content, validate=validate)
        metadata = tagged.schema.metadata or {}
        is_of_kind = metadata.get(_KIND_KEY, b"") == kind.encode()
        version = int(metadata.get(_VERSION_KEY, b"0")) if is_of_kind else 0
        run_id = metadata.get(_RUN_KEY, b"").decode()
    except ValueError as error:
        raise DamagedPartError(f"{path} is not a part of a sample store: {error}.") from None
    if not is_of_kind:
        raise DamagedPartError(f"{path} does not hold {kind} rows of a sample store; move it out of the store.")
    check_version(path, version)
    if not tagged.schema.equals(KINDS[kind]):
        names = tagged.schema.names
        raise DamagedPartError(f"{path} has columns {names}, expected the {kind} columns {KINDS[kind].names}.")
    batch = tagged.replace_schema_metadata(None)
    if validate and (problem := _problem(kind, batch)):
        raise DamagedPartError(f"{path} does not hold {kind} rows of a sample store: {problem}.")
    return Part(batch, _commits(path, file, metadata, batch.num_rows), run_id)


def _problem(kind: str, batch: pa.RecordBatch) -> str | None:
    """Return what no writer of the store would have written, and no reader expects."""
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if not field.nullable and column.null_count:
            return f"{field.name} must not be null"
    if kind == "groups":
        outputs = batch["outputs"].values
        ids, logprobs, *texts = (outputs.field(index) for index in range(outputs.type.num_fields))
        inner = [outputs, ids, logprobs, *texts, ids.values, logprobs.values, batch["prompt_token_ids"].values]
        if any(values.null_count for values in inner):
            return "outputs and tokens must not be null"
        same = ids.offsets.equals(logprobs.offsets) or pc.list_value_length(ids).equals(pc.list_value_length(logprobs))
        return None if same else "each token must have one log-probability"
    return None


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
    except (KeyError, ValueError, TypeError, RecursionError):
        raise DamagedPartError(f"{path} does not state which commits it holds.") from None
    stated = sum(count for _, count in commits) == rows and all(count > 0 for _, count in commits)
    if not stated or not all(is_part(plain_file(commit)) for commit, _ in commits):
        raise DamagedPartError(f"{path} holds {rows} rows, not the number that its list of commits states.")
    return commits
