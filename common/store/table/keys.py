"""Look-up of one of millions of rows by its key, without a Python object per row.

A key is one or more columns. Its 64-bit hash is looked up in a sorted array. The caller compares the key itself, so a
collision costs time and is never an error.
"""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]

_WORD = 8


def hash_keys(columns: Sequence[pa.Array]) -> Hashes:
    """Return the hashes [rows] of the keys in parallel columns; they are the same on every machine.

    Args:
        columns: string, dictionary-of-string or int64 arrays of one length, without nulls.
    """
    hashes = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        hashes = _mixed(hashes * np.uint64(0x9E3779B97F4A7C15) + _hash_column(column))
    return hashes


def _hash_column(column: pa.Array) -> Hashes:
    if pa.types.is_dictionary(column.type):
        return _hash_strings(column.dictionary)[column.indices.to_numpy(zero_copy_only=False)]
    if pa.types.is_integer(column.type):
        return column.to_numpy(zero_copy_only=False).astype(np.uint64)
    return _hash_strings(column)


def _hash_strings(column: pa.StringArray) -> Hashes:
    words, lengths = _words(column)
    return (words * _factors(words.shape[1])).sum(axis=1, dtype=np.uint64) + lengths.astype(np.uint64)


def _words(column: pa.StringArray) -> tuple[Hashes, npt.NDArray[np.int32]]:
    """Return the strings' bytes, zero-padded to a common width, [rows, width / 8], and their lengths [rows]."""
    if not len(column):
        return np.zeros((0, 1), dtype=np.uint64), np.zeros(0, dtype=np.int32)
    _, offset_buffer, data = column.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    lengths = np.diff(offsets)
    width = max(_WORD, -(-int(lengths.max()) // _WORD) * _WORD)
    if int(lengths.min()) == width:  # digests have equal widths
        content = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
        return content.reshape(-1, width).view(np.uint64), lengths
    padded = np.array([value.encode() for value in column.to_pylist()], dtype=f"S{width}")
    return padded.view(np.uint64).reshape(-1, width // _WORD), lengths


def _mixed(values: Hashes) -> Hashes:
    """Spread every bit of the values over all bits (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def _factors(count: int) -> Hashes:
    return _mixed(np.arange(1, count + 1, dtype=np.uint64)) | np.uint64(1)


class HashTable:
    """Rows by hash, as a sorted array that is built at once."""

    def __init__(self, hashes: Hashes) -> None:
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._rows: Rows = order

    def candidates(self, wanted: Hashes) -> tuple[Rows, Rows]:
        """Return (index into `wanted`, row) for every row with one of the wanted hashes."""
        first = np.searchsorted(self._hashes, wanted, side="left")
        counts = np.searchsorted(self._hashes, wanted, side="right") - first
        asked = np.repeat(np.arange(len(wanted)), counts)
        within = np.arange(len(asked)) - np.repeat(np.cumsum(counts) - counts, counts)
        return asked, self._rows[first[asked] + within]

    def repeated(self) -> Rows:
        """Return all rows that share their hash with another row."""
        same = self._hashes[1:] == self._hashes[:-1]
        return self._rows[np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))]
