"""Output files and directories that appear whole or not at all, and replace nothing unless told so."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.durable import fsync_path, temporary_sibling
from common.errors import UserError

_DATASET_MARKER = "dataset_info.json"


@contextmanager
def new_output(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a path to write a file or a directory to, which becomes `path` when the block ends without an error.

    Args:
        path: where the output is wanted.
        force: replace a file, or a directory that an export has made, that is there already.

    Raises:
        UserError: something is there that must not be replaced, or it cannot be written; nothing is left behind then.
    """
    _check_free(path, force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make a directory for {path}: {error.strerror}; name another --output.") from None
    temporary = temporary_sibling(path)
    try:
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            fsync_path(entry)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
        fsync_path(path.parent)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}; nothing was left behind.") from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _check_free(path: Path, force: bool) -> None:
    if not path.exists():
        return
    if not force:
        raise UserError(f"{path} exists already; name another --output, or say --force to replace it.")
    if path.is_dir() and not (path / _DATASET_MARKER).exists():
        raise UserError(f"{path} is a directory that no export has made, so --force does not replace it.")
