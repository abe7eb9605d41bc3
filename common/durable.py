"""Files and directories that appear complete or not at all, and survive a power cut once they have appeared."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = ".tmp-"
_NOTHING_TO_FLUSH = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_shortcomings: dict[str, None] = {}


def note_shortcoming(sentence: str) -> None:
    """Note something that a file system lacks, and that this process does without."""
    _shortcomings.setdefault(sentence)


def shortcomings() -> list[str]:
    """Return a sentence for each thing that file systems lack, as far as this process has noticed."""
    return list(_shortcomings)


def fsync_path(path: Path) -> None:
    """Flush one file or directory entry to stable storage."""
    handle = os.open(path, os.O_RDONLY)
    try:
        _fsync(handle, path)
    finally:
        os.close(handle)


def _fsync(handle: int, path: Path) -> None:
    """Flush what is open; CIFS, FUSE and others refuse it where they have nothing to flush, directories above all."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOTHING_TO_FLUSH:
            error.filename = str(path)
            raise
        folder = path if path.is_dir() else path.parent
        note_shortcoming(
            f"The file system of {folder} cannot flush {'directories' if path.is_dir() else 'files'} to the disk: what "
            f"was written last may be lost in a power cut."
        )


def time_at(directory: Path) -> float:
    """Return the present time by the clock that sets the times of files in a directory: a file server has its own."""
    probe = temporary_sibling(directory / "time")
    with _created(probe):
        pass
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def make_directories(path: Path) -> None:
    """Make a directory and its missing parents, so that they survive a power cut."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for directory in missing:
        fsync_path(directory.parent)


def temporary_sibling(path: Path) -> Path:
    """Return a name beside `path` that readers ignore."""
    return path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")


def is_temporary(path: Path | os.DirEntry[str]) -> bool:
    """Return whether `path` is an unfinished file or directory of a writer."""
    return path.name.startswith(_TEMPORARY)


def write_file(path: Path, content: bytes | str | memoryview) -> None:
    """Write `content` to `path`, atomically and durably (tmp + fsync + rename + directory fsync)."""
    temporary = temporary_sibling(path)
    try:
        with _created(temporary) as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            _fsync(file.fileno(), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def _created(path: Path) -> BinaryIO:
    try:
        return open(path, "xb")
    except FileNotFoundError:
        make_directories(path.parent)
        return open(path, "xb")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path`, durably, when the block ends without an error.

    Raises:
        FileExistsError: `path` exists already.
    """
    if path.exists():
        raise FileExistsError(path)
    make_directories(path.parent)
    temporary = temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        _as_if_opened(temporary)
        for entry in sorted(temporary.rglob("*")):
            fsync_path(entry)
        fsync_path(temporary)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_path(path.parent)


def _as_if_opened(directory: Path) -> None:
    """Give all files below a directory the mode that `open` gives new ones: the user's umask, or its ACL, decides.

    Libraries that write to a temporary file first (safetensors) leave it readable by its owner alone.
    """
    opened = temporary_sibling(directory / "mode")
    opened.touch()
    mode = opened.stat().st_mode & 0o777
    opened.unlink()
    for entry in directory.rglob("*"):
        if entry.is_file() and not entry.is_symlink() and entry.stat().st_mode & 0o777 != mode:
            with suppress(OSError):  # a file system without modes
                entry.chmod(mode)


def remove_leftovers(directory: Path) -> None:
    """Delete the remains of interrupted writers in `directory`; only its one owner may call this."""
    leftovers = list(directory.glob(f"{_TEMPORARY}*")) if directory.exists() else []
    for entry in leftovers:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
