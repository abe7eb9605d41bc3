"""One part of the sample store: an Arrow IPC file that appears whole or not at all and carries its own checksum.

The checksum (BLAKE2b, 128 bit, over the whole file) stands in the file's name, so a part stays an ordinary Arrow file
that any tool opens, and a torn, altered or renamed one is found out:

    groups/00000012-2f1c….arrow       sequence number, checksum
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from common.durable import is_temporary, write_file
from common.errors import DamagedPartError, UserError
from common.schemas import SCHEMA_VERSION

_NAME = re.compile(r"^(\d{8})-([0-9a-f]{32})\.arrow$")
_VERSION_KEY = b"brain.schema_version"
_KIND_KEY = b"brain.kind"
_WRITER_KEY = b"brain.writer"


@dataclass(frozen=True)
class PartName:
    """What a part's file name says."""

    sequence: int
    checksum: str

    def __str__(self) -> str:
        return f"{self.sequence:08d}-{self.checksum}.arrow"


def parse_name(path: Path) -> PartName | None:
    """The parsed name of a part, or None for what is no part (a foreign file, an unfinished one)."""
    match = _NAME.match(path.name)
    return PartName(int(match[1]), match[2]) if match and not is_temporary(path) else None


def checksum(content: bytes | memoryview | pa.Buffer) -> str:
    """BLAKE2b-128 of a part's bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def write_part(directory: Path, sequence: int, kind: str, writer: str, batch: pa.RecordBatch) -> Path:
    """Write one batch as a part; when this returns, the part survives a power cut."""
    metadata = {_VERSION_KEY: str(SCHEMA_VERSION), _KIND_KEY: kind, _WRITER_KEY: writer}
    sink = pa.BufferOutputStream()
    tagged = batch.replace_schema_metadata(metadata)
    with pa.ipc.new_file(sink, tagged.schema) as file:
        file.write_batch(tagged)
    content = sink.getvalue()
    path = directory / str(PartName(sequence, checksum(content)))
    write_file(path, memoryview(content))
    return path


def read_part(path: Path, kind: str, schema: pa.Schema) -> pa.Table:
    """Read one part, memory-mapped, after checking that it is what was written.

    Raises:
        DamagedPartError: the file's bytes do not match its name, or it holds something else than `kind`.
    """
    name = parse_name(path)
    if name is None:
        raise DamagedPartError(f"{path} is no part of a sample store: its name has no sequence number and checksum.")
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer()
    if checksum(content) != name.checksum:
        raise DamagedPartError(
            f"{path} is damaged: its {content.size} bytes do not match the checksum in its name (truncated or altered)."
        )
    table = pa.ipc.open_file(content).read_all()
    _check_kind(path, table.schema, kind, schema)
    return table.replace_schema_metadata(None)


def _check_kind(path: Path, found: pa.Schema, kind: str, schema: pa.Schema) -> None:
    metadata = found.metadata or {}
    if metadata.get(_KIND_KEY, b"").decode() != kind:
        raise DamagedPartError(f"{path} does not hold {kind} rows of a sample store; move it out of the store.")
    version = int(metadata.get(_VERSION_KEY, b"0"))
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} was written by a newer brain-align (schema {version}, this one reads up to {SCHEMA_VERSION}); "
            f"upgrade brain-align to read it."
        )
    if not found.equals(schema):
        raise DamagedPartError(f"{path} has columns {found.names}, expected the {kind} columns {schema.names}.")
