"""Changes to files that nobody makes in good faith."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

_INTERESTING = (0, 1, -1, 2, 7, 255, 2**15, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, -(2**40), 2**63 - 1, -(2**63))


@dataclass(frozen=True)
class Change:
    """One change of bytes: what, where (a share of the place's length), and with which value."""

    how: str
    where: str
    buffer: float
    at: float
    value: int


SHARE = st.floats(0, 1, exclude_max=True)
CHANGES = st.builds(
    Change,
    st.sampled_from(["bit", "byte", "int32", "int32", "int64", "truncate", "insert", "zeros"]),
    st.sampled_from(["anywhere", "buffers", "buffers", "buffers", "metadata", "end"]),
    SHARE,
    SHARE,
    st.sampled_from(_INTERESTING) | st.integers(-300, 300),
)


def changed(content: bytes, changes: list[Change]) -> bytes:
    """The content with these changes; `buffers` are those of an Arrow file: offsets, values, validity."""
    mutable = bytearray(content)
    spans = [*_buffers(content)] or [(0, len(content))]
    for change in changes:
        first, length = _span(change, spans, len(mutable))
        place = min(first + int(change.at * max(length, 1)), max(len(mutable) - 1, 0))
        _apply(mutable, change, place)
    return bytes(mutable)


def _span(change: Change, spans: list[tuple[int, int]], size: int) -> tuple[int, int]:
    match change.where:
        case "buffers":
            return spans[int(change.buffer * len(spans))]
        case "metadata":
            return 0, min(first for first, _ in spans) or size
        case "end":
            return max(0, size - 200), min(200, size)
    return 0, size


def _apply(content: bytearray, change: Change, place: int) -> None:
    match change.how:
        case "bit" if content:
            content[place] ^= 1 << (change.value % 8)
        case "byte" if content:
            content[place] = change.value % 256
        case "int32" | "int64":
            form, width = ("<i", 4) if change.how == "int32" else ("<q", 8)
            aligned = place // width * width
            bits = 8 * width
            value = (change.value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
            content[aligned : aligned + width] = struct.pack(form, value)
        case "truncate":
            del content[place:]
        case "insert":
            content[place:place] = bytes([change.value % 256]) * (abs(change.value) % 64)
        case "zeros":
            content[place : place + 64] = bytes(len(content[place : place + 64]))


def _buffers(content: bytes) -> Iterator[tuple[int, int]]:
    """The places of an Arrow file's buffers, and their lengths."""
    source = pa.py_buffer(content)
    try:
        reader = pa.ipc.open_file(source)
        columns: list[Any] = [one for n in range(reader.num_record_batches) for one in reader.get_batch(n).columns]
    except (pa.ArrowException, OSError):
        return
    for column in columns:
        for buffer in column.buffers():
            first = 0 if buffer is None else buffer.address - source.address
            if buffer is not None and buffer.size and 0 < first < len(content):  # not one that was compressed
                yield first, buffer.size
