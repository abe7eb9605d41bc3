"""Output files and directories that appear whole or not at all, and replace nothing unless told to."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from brain_align.common.durable import fsync_path, temporary_sibling
from brain_align.common.errors import UserError

_DATASET_MARKER = "dataset_info.json"


def check_output(path: Path, *, force: bool) -> None:
    """Refuse a place that `new_output` would refuse, before long work."""
    there = next(directory for directory in path.absolute().parents if directory.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "may not be written to" if there.is_dir() else "is not a directory"
        raise UserError(f"Cannot write {path}: {there} {what}; name another --output.")
    if not path.exists():
        return
    if not force:
        raise UserError(f"{path} exists already; name another --output, or pass --force to replace it.")
    if path.is_dir() and not (path / _DATASET_MARKER).exists():
        raise UserError(f"{path} is a directory that no export has made, so --force does not replace it.")


@contextmanager
def new_output(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a path to write a file or a directory to, which becomes `path` when the block ends without an error.

    If the block fails, nothing is left behind and its error is raised as it is; those of its parts that write use
    `writing`. With `force`, an existing file, or a directory that an export has made, is replaced;
    anything else that is there is refused, and a place that cannot be written.
    """
    check_output(path, force=force)
    temporary = temporary_sibling(path)
    missing = [directory for directory in path.parents if not directory.exists()]
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with writing(path):
            _put(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        for directory in missing:
            with suppress(OSError):  # it holds something: the output, or what somebody else has put there
                directory.rmdir()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which does nothing but write an output, into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}; nothing was left behind.") from None


@contextmanager
def new_lines(temporary: Path, path: Path) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes a line to the new text file `temporary`, which becomes `path`."""
    with writing(path):
        file = open(temporary, "w", encoding="utf-8")  # noqa: SIM115 - closed below, where an error is reported

    def write(line: str) -> None:
        with writing(path):
            file.write(f"{line}\n")

    try:
        yield write
    finally:
        with writing(path):
            file.close()


def _put(temporary: Path, path: Path) -> None:
    for entry in [*temporary.rglob("*"), temporary]:
        fsync_path(entry)
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(temporary, path)
    fsync_path(path.parent)
