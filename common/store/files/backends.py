"""Where a store's files lie, behind six operations: a local directory, or any file system that pyarrow opens.

Whatever the place, `put` is atomic and durable: a reader sees the whole file or none, and when `put` has returned the
file survives a power cut. Files are never changed after that.
"""

import contextlib
import mmap
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from brain_align.common.durable import fsync_path, is_temporary, make_directories, write_file
from brain_align.common.store.format.checksums import matches

_LARGE = 8 << 20  # bytes: files that are not kept in memory for having been checked


@dataclass(frozen=True)
class Entry:
    """One file of a directory.

    Attributes:
        name: without the directory.
        size: bytes.
        modified: seconds since the epoch, by the place's own clock.
    """

    name: str
    size: int
    modified: float


class StorageBackend(Protocol):
    """A tree of files, one level deep: paths are `directory/name`, or a bare name at the top."""

    uri: str
    """How messages name the place: without the keys that its URI may hold."""
    fetches: bool
    """Whether reading a file again brings its bytes anew, over a network: then they are checked anew."""

    def prepare(self) -> None:
        """Make the place writable, as far as that needs doing."""

    def list(self, directory: str) -> list[Entry]:
        """The finished files of a directory in no particular order; none where there is no such directory."""

    def read(self, path: str) -> pa.Buffer:
        """A file's content, memory-mapped where that is possible.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def read_checked(self, path: str, checksum: str) -> pa.Buffer | None:
        """As `read`; None where the content does not have this checksum."""

    def put(self, directory: str, name: str, content: pa.Buffer) -> None:
        """Write a new file, or replace one, atomically and durably."""

    def move(self, path: str, target: str) -> None:
        """Give a file another path; nothing happens where it is gone already."""

    def remove(self, path: str) -> None:
        """Delete a file; nothing happens where it is gone already."""


class LocalBackend:
    """A directory of this machine, or of a file system mounted on it."""

    fetches = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def prepare(self) -> None:
        """Make the directory."""
        make_directories(self.root)

    def list(self, directory: str) -> list[Entry]:
        """See `StorageBackend.list`."""
        try:
            found = os.scandir(self.root / directory)
        except FileNotFoundError:
            return []
        entries = []
        with found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):  # removed by another process since
                    if entry.is_file() and not is_temporary(entry):
                        facts = entry.stat()
                        entries.append(Entry(entry.name, facts.st_size, facts.st_mtime))
        return entries

    def read(self, path: str) -> pa.Buffer:
        """Map a file; the mapping outlives the file's removal."""
        return pa.py_buffer(self._mapped(path))

    def read_checked(self, path: str, checksum: str) -> pa.Buffer | None:
        """Map a file and hash it there: what is read for that is what will be used, and is not read again."""
        mapped = self._mapped(path)
        if not matches(memoryview(mapped), checksum):
            return None
        if isinstance(mapped, mmap.mmap) and len(mapped) > _LARGE:
            mapped.madvise(mmap.MADV_DONTNEED)  # only what is used of it comes back into this process's memory
        return pa.py_buffer(mapped)

    def put(self, directory: str, name: str, content: pa.Buffer) -> None:
        """Write tmp + fsync + rename + directory fsync."""
        write_file(self.root / directory / name, content)

    def _mapped(self, path: str) -> mmap.mmap | bytes:
        handle = os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return mmap.mmap(handle, 0, access=mmap.ACCESS_READ) if os.fstat(handle).st_size else b""
        finally:
            os.close(handle)

    def move(self, path: str, target: str) -> None:
        """Rename, durably."""
        make_directories((self.root / target).parent)
        try:
            os.replace(self.root / path, self.root / target)
        except FileNotFoundError:
            return
        fsync_path((self.root / target).parent)
        fsync_path((self.root / path).parent)

    def remove(self, path: str) -> None:
        """Unlink."""
        (self.root / path).unlink(missing_ok=True)

    def remove_unfinished(self, directory: str, older_than: float) -> None:
        """Delete what interrupted writers left; the age spares a writer who is at work just now.

        Args:
            directory: where to look.
            older_than: seconds.
        """
        folder = self.root / directory
        for path in folder.iterdir() if folder.exists() else ():
            with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                if is_temporary(path) and time.time() - path.stat().st_mtime > older_than:
                    path.unlink()


def shown(uri: str) -> str:
    """A URI as messages may show it: without its user part and its query, either of which may hold keys."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    if "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
    elif ":" in authority:  # perhaps a key that is not escaped, and holds any character
        rest = rest.rpartition("@")[2]
    return f"{scheme}{separator}{rest.partition('?')[0].rstrip('/')}"


def open_backend(uri: str | Path) -> StorageBackend:
    """The place that a path or URI names.

    Raises:
        UserError: a URI that no file system of pyarrow understands.
    """
    text = str(uri)
    if "://" not in text:
        return LocalBackend(Path(text).expanduser().absolute())
    if text.startswith("file://"):
        return LocalBackend(Path(text.removeprefix("file://")))
    from brain_align.common.store.files.object_store import (
        open_object_store,  # loads the cloud libraries: only where they are used
    )

    return open_object_store(text)
