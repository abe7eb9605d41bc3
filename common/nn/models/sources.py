"""The sources of models: a local directory, or the Hugging Face hub."""

from pathlib import Path

from brain_align.common.errors import UserError


def is_local(source: str, what: str) -> bool:
    """Return whether `source` is a local directory; if not, it can only be a hub id ("owner/name", or a name alone).

    Raises:
        UserError: it is not a directory, and cannot be a hub id either.
    """
    path = Path(source)
    if path.is_dir():
        return True
    if path.exists():
        raise UserError(f"{what}: {source} is a file; give the directory that holds it.")
    if path.is_absolute() or source.startswith((".", "~")) or len(path.parts) > 2:
        raise UserError(f"{what}: the directory {source} does not exist.")
    return False
