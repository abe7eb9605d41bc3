"""File names of a store: they state the order of commitment and the checksum of each file.

    00000012-5e1f09ac-<checksum>.arrow            one commit: sequence number, writer, checksum of the file
    compact-00000003-5e1f09ac-<checksum>.arrow    several commits in one file, which lists them in its metadata
    <checksum> = xxh128-<32 hexadecimal digits>   XXH3-128, as `xxh128sum FILE` prints it

A commit is one append: its rows appear together. A commit has the name of its first file, without the extension, and
commits are ordered as these names are sorted: by cause and effect, never by a clock, since a writer numbers a commit
one higher than the highest that it has seen. If two writers that did not see each other use one number, their names
decide.
"""

import re
from typing import TypeAlias

import pyarrow as pa
import xxhash

from brain_align.common.errors import UserError

Content: TypeAlias = bytes | memoryview | pa.Buffer

CHECKSUM = "xxh128-[0-9a-f]{32}"
"""A regular expression that every checksum matches."""
_NAME = re.compile(rf"(compact-)?\d{{8}}-[0-9a-f]{{8}}-{CHECKSUM}\.arrow")
_LAST = re.compile(rf"({CHECKSUM})\.arrow$")
_EXTENSION = ".arrow"
_COMPACTED = "compact-"
_LAST_SEQUENCE = 10**8 - 1


def checksum(content: Content) -> str:
    """Return the checksum of a file with this content, as it stands in the file's name."""
    return "xxh128-" + xxhash.xxh3_128_hexdigest(content)


def checksum_of(file: str) -> str:
    """Return the checksum that a file's name states.

    Raises:
        ValueError: the name has none.
    """
    found = _LAST.search(file)
    if found is None:
        raise ValueError(f"the name {file} has no checksum")
    return found[1]


def commit_name(sequence: int, writer: str, checksum: str) -> str:
    """Return the name of a commit.

    Raises:
        UserError: the store has as many commits as names can keep in order.
    """
    if sequence > _LAST_SEQUENCE:
        raise UserError(
            f"The sample store has {sequence} commits of one kind, which is the maximum; start another store."
        )
    return f"{sequence:08d}-{writer}-{checksum}"


def plain_file(commit: str) -> str:
    """Return the file that a commit was written to."""
    return commit + _EXTENSION


def compacted_file(sequence: int, writer: str, checksum: str) -> str:
    """Return the file name of a compacted part; its sequence number is that of its first commit."""
    return _COMPACTED + plain_file(commit_name(sequence, writer, checksum))


def is_part(file: str) -> bool:
    """Return whether a file name is that of a part."""
    return _NAME.fullmatch(file) is not None


def is_compacted(file: str) -> bool:
    """Return whether a part is a compacted one, which may hold several commits."""
    return file.startswith(_COMPACTED)


def commit_of(file: str) -> str:
    """Return the commit that a part, which is not a compacted one, was written for."""
    return file.removesuffix(_EXTENSION)


def sequence_of(commit: str) -> int:
    """Return the sequence number of a commit."""
    return int(commit[:8])
