"""The names of a store's files say in which order their rows were committed, and what their bytes must be.

    00000012-5e1f09ac-<checksum>.arrow            one commit: sequence number, writer, checksum of the file
    compact-00000003-5e1f09ac-<checksum>.arrow    several commits in one file, which names them in its metadata
    00000012-<checksum>.arrow                     one commit of format 1, which knew one writer only

A commit is one append: its rows appear together. It is called what its first file was called, without the extension,
and commits are ordered as these names are sorted. A writer numbers a commit one higher than the highest that it has
seen, so the order follows cause and effect and never a clock. Writers who did not see each other may use one number;
then the writer's name decides, alike for all readers.
"""

import re

from brain_align.common.errors import UserError
from brain_align.common.store.format.checksums import PATTERN

_NAME = re.compile(rf"(compact-)?(\d{{8}})-(?:([0-9a-f]{{8}})-)?({PATTERN})\.arrow")
_EXTENSION = ".arrow"
_COMPACTED = "compact-"
_LAST_SEQUENCE = 10**8 - 1


def commit_name(sequence: int, writer: str, checksum: str) -> str:
    """The name of a commit.

    Raises:
        UserError: the store has as many commits as names can tell apart in order.
    """
    if sequence > _LAST_SEQUENCE:
        raise UserError(
            f"The sample store has {sequence} commits of one kind, which is all it can have; begin another."
        )
    return f"{sequence:08d}-{writer}-{checksum}"


def plain_file(commit: str) -> str:
    """The file that a commit was written to."""
    return commit + _EXTENSION


def compacted_file(sequence: int, writer: str, checksum: str) -> str:
    """The file of a compaction: its sequence is that of its first commit."""
    return _COMPACTED + plain_file(commit_name(sequence, writer, checksum))


def is_part(file: str) -> bool:
    """Whether a file is called as a part is."""
    return _NAME.fullmatch(file) is not None


def is_compacted(file: str) -> bool:
    """Whether a part holds several commits."""
    return file.startswith(_COMPACTED)


def commit_of(file: str) -> str:
    """The commit that a part was written for, if it is not a compacted one."""
    return file.removesuffix(_EXTENSION)


def sequence_of(commit: str) -> int:
    """A commit's number."""
    return int(commit[:8])
