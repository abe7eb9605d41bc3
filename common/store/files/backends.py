"""Storage backends: seven operations on the files of a store, in a local directory or any file system of pyarrow.

For every backend `put` is atomic and durable: a reader sees the whole file or nothing, and once `put` has returned the
file survives a power cut. A file's content never changes afterwards.
"""

import contextlib
import errno
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from typing_extensions import override

from brain_align.common.durable import fsync_path, is_temporary, make_directories, time_at, write_file
from brain_align.common.errors import UserError
from brain_align.common.store.format.names import checksum, checksum_of

_LARGE = 8 << 20  # bytes; larger files do not stay in memory just because they were checked


@dataclass(frozen=True)
class Entry:
    """One file of a directory."""

    name: str  # without the directory
    size: int  # bytes
    modified: float  # seconds since the epoch, by the backend's own clock


class StorageBackend(Protocol):
    """A tree of files, one level deep: paths are `directory/name`, or a bare name at the top."""

    uri: str
    """The backend's name in messages: without the keys that its URI may hold."""
    fetches: bool
    """Return whether every read transfers the bytes again, over a network: they have to be checked again."""
    trouble: str | None = None
    """The error of a request that is being repeated; None while requests succeed. Any thread may read it."""

    def prepare(self) -> None:
        """Create what has to be there before the first file is written."""

    def list(self, directory: str) -> list[Entry]:
        """Return the finished files of a directory in no particular order; none if the directory does not exist."""

    def read(self, path: str) -> pa.Buffer:
        """Return a file's content, memory-mapped where that is possible.

        Raises:
            FileNotFoundError: the file does not exist.
        """

    def read_checked(self, path: str) -> pa.Buffer | None:
        """Return a file's content as `read` does, or None if its checksum is not the one in its name."""

    def put(self, directory: str, name: str, content: pa.Buffer) -> None:
        """Write a new file, or replace one, atomically and durably."""

    def time(self) -> float:
        """Return the present time by the clock of `Entry.modified`, in seconds since the epoch."""

    def move(self, path: str, target: str) -> None:
        """Rename a file; do nothing if it is gone already."""

    def remove(self, path: str) -> None:
        """Delete a file; do nothing if it is gone already."""


class LocalBackend(StorageBackend):
    """A directory of this machine, or of a file system mounted on it."""

    fetches = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    @override
    def prepare(self) -> None:
        make_directories(self.root)

    @override
    def list(self, directory: str) -> list[Entry]:
        try:
            found = os.scandir(self.root / directory)
        except FileNotFoundError:
            return []
        entries = []
        with found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):  # another process has removed it since
                    if entry.is_file() and not is_temporary(entry):
                        status = entry.stat()
                        entries.append(Entry(entry.name, status.st_size, status.st_mtime))
        return entries

    @override
    def read(self, path: str) -> pa.Buffer:
        return pa.py_buffer(self._mapped(path))  # the mapping outlives the file's removal

    @override
    def read_checked(self, path: str) -> pa.Buffer | None:
        mapped = self._mapped(path)  # the bytes that are hashed are those that will be used: they are read once
        if checksum(memoryview(mapped)) != checksum_of(path):
            return None
        if isinstance(mapped, mmap.mmap) and len(mapped) > _LARGE:
            mapped.madvise(mmap.MADV_DONTNEED)  # only what is used of it comes back into this process's memory
        return pa.py_buffer(mapped)

    @override
    def put(self, directory: str, name: str, content: pa.Buffer) -> None:
        write_file(self.root / directory / name, content)  # tmp + fsync + rename + directory fsync

    @override
    def time(self) -> float:
        return time_at(self.root)

    @override
    def move(self, path: str, target: str) -> None:
        make_directories((self.root / target).parent)
        try:
            os.replace(self.root / path, self.root / target)
        except FileNotFoundError:
            return
        fsync_path((self.root / target).parent)
        fsync_path((self.root / path).parent)

    @override
    def remove(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)

    def remove_unfinished(self, directory: str, older_than: float) -> None:
        """Delete what interrupted writers left, if it is older (in seconds): other writers are still at work."""
        folder = self.root / directory
        unfinished = [path for path in folder.iterdir() if is_temporary(path)] if folder.exists() else []
        now = time_at(folder) if unfinished else 0.0
        for path in unfinished:
            with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                if now - path.stat().st_mtime > older_than:
                    path.unlink()

    def _mapped(self, path: str) -> mmap.mmap | bytes:
        handle = os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:
            try:
                return mmap.mmap(handle, 0, access=mmap.ACCESS_READ) if os.fstat(handle).st_size else b""
            except OSError as error:
                if error.errno != errno.ENODEV:  # a file system that maps no files, as some of FUSE
                    raise
                return file.read()


def unusable(backend: StorageBackend, how: str, error: OSError) -> UserError:
    """Return the message for a store that cannot be opened, read or written."""
    return UserError(f"The sample store {backend.uri} cannot be {how}: {error.strerror or error}.")


def open_backend(uri: str | Path) -> StorageBackend:
    """Return the storage backend that a path or URI names.

    Raises:
        UserError: no file system of pyarrow understands the URI.
    """
    text = str(uri)
    if "://" not in text:
        return LocalBackend(Path(text).expanduser().absolute())
    if text.startswith("file://"):
        return LocalBackend(Path(text.removeprefix("file://")))
    from brain_align.common.store.files.object_store import open_object_store  # loads the cloud libraries

    return open_object_store(text)
