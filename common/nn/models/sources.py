"""The sources of models: a local directory, or the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import snapshot_download

from brain_align.common.errors import UserError, first_line


def is_local(source: str, what: str) -> bool:
    """Return whether `source` is a local directory; if not, it can only be a hub id.

    Args:
        source: a directory or a hub id ("owner/name", or a name alone).
        what: the thing to load, for the error.

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


def local_directory(source: str, what: str, patterns: list[str]) -> Path:
    """Return the directory that holds a source's files, downloaded first if `source` is a hub id.

    Args:
        source: a directory or a hub id.
        what: the thing to load, for the error.
        patterns: names of the files to download, such as "*.json".

    Raises:
        UserError: neither the directory nor the repository exists.
    """
    if is_local(source, what):
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: {source} could not be fetched from the hub: {first_line(error)}") from error
