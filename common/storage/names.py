"""The names of a store's files say in which order their rows were committed, and what their bytes must be.

    00000012-5e1f09ac-<checksum>.arrow            one commit: sequence number, writer, BLAKE2b-128 of the file
    compact-00000003-5e1f09ac-<checksum>.arrow    several commits in one file, which names them in its metadata
    00000012-<checksum>.arrow                     one commit of format 1, which knew one writer only

A writer numbers a commit one higher than the highest that it has seen, so the order follows cause and effect and never
a clock. Writers who did not see each other may use one number; then the writer's name decides, alike for all readers.
"""

import hashlib
import re
from typing import NamedTuple

import pyarrow as pa

_NAME = re.compile(r"(compact-)?(\d{8,})-(?:([0-9a-f]{8})-)?([0-9a-f]{32})\.arrow")


class Commit(NamedTuple):
    """One append: its rows appear together. Commits are ordered as these fields are."""

    sequence: int
    writer: str
    checksum: str

    def __str__(self) -> str:
        return "-".join(filter(None, (f"{self.sequence:08d}", self.writer, self.checksum)))


class PartName(NamedTuple):
    """A part's file name. The commit of a compacted part is that of the compaction, not of any row."""

    commit: Commit
    compacted: bool

    def __str__(self) -> str:
        return f"{'compact-' if self.compacted else ''}{self.commit}.arrow"


def parse_name(name: str) -> PartName | None:
    """What a part's file name says, or None for what is no part (a foreign file, an unfinished one)."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return PartName(Commit(int(match[2]), match[3] or "", match[4]), match[1] is not None)


def parse_commit(text: str) -> Commit:
    """The inverse of `str(commit)`.

    Raises:
        ValueError: it is no commit's name.
    """
    name = parse_name(f"{text}.arrow")
    if name is None or name.compacted:
        raise ValueError(f"{text!r} names no commit")
    return name.commit


def checksum(content: bytes | memoryview | pa.Buffer) -> str:
    """BLAKE2b-128 of a file's bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
