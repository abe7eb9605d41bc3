"""Locks on files, which the system releases when their process ends, however it does."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brain_align.common.durable import note_shortcoming

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
"""The answers of file systems without locks: NFS without its lock service, Lustre without `flock`, FUSE."""


@contextmanager
def file_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a file, which is made if necessary; yields whether it is held: some file systems have no locks.

    Raises:
        BlockingIOError: another process holds it; with `wait` that is waited for.
        OSError: the file cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield _locked(handle, path, wait)
    finally:
        os.close(handle)


def _locked(handle: int, path: Path, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        note_shortcoming(
            f"The file system of {path.parent} has no locks ({error.strerror}): nothing keeps two commands apart that "
            f"begin there at the same moment. A sample store is safe: only one run at a time trains on it."
        )
        return False
    return True
