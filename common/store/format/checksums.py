"""Checksums of a store's files, as they stand in the files' names.

    00000012-5e1f09ac-xxh128-<32 hexadecimal digits>.arrow     XXH3-128, as `xxh128sum FILE` prints it
    00000012-5e1f09ac-<32 hexadecimal digits>.arrow            BLAKE2b-128, which formats 1 and 2 had

They are to find damage, not forgery: XXH3 is no cryptographic hash, and reads memory about as fast as it is copied.
"""

import hashlib
import re
from typing import TypeAlias

import pyarrow as pa
import xxhash

Content: TypeAlias = bytes | memoryview | pa.Buffer

_XXH128 = "xxh128-"
PATTERN = rf"(?:{_XXH128})?[0-9a-f]{{32}}"
"""A regular expression that every checksum matches."""
_LAST = re.compile(rf"({PATTERN})\.arrow")


def checksum(content: Content) -> str:
    """The checksum of a new file with this content."""
    return _XXH128 + xxhash.xxh3_128_hexdigest(content)


def checksum_of(file: str) -> str:
    """What the content of a file with this name must have as its checksum.

    Raises:
        ValueError: the name has none.
    """
    found = _LAST.search(file)
    if found is None or found.end() != len(file):
        raise ValueError(f"the name {file} has no checksum")
    return found[1]


def matches(content: Content, wanted: str) -> bool:
    """Whether a file's content has the checksum that its name says, of whichever kind."""
    if wanted.startswith(_XXH128):
        return checksum(content) == wanted
    return hashlib.blake2b(content, digest_size=16).hexdigest() == wanted
