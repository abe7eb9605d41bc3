"""The digest of a base, by which its worlds are named: needs no TRL, and reads an unchanged base's weights only once.

Beside the worlds, `.base-….json` keeps the last digest of each base, and size and time of change of its files. A
directory in which these are the same is not read again. Where a base is gone, its last digest still names its worlds.
"""

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.common.identity import digest, digest_files
from brain_align.common.nn.models.configuration import load_config
from brain_align.common.nn.models.sources import Source, find_source
from brain_align.scorer.text_models.checkpoints import loaded_files

Files = dict[str, list[int]]


@dataclass(frozen=True)
class Identity:
    """The digest of a base's files, or its commit on the hub."""

    digest: str
    files: Files  # size in bytes and time of change in ns of each file in a directory; of the hub, none
    missing: Exception | None = None  # why the base cannot be had now; the digest is then the last one known


def identify(source: str, cache: Path) -> Identity:
    """Return a base's identity; `cache` is the directory of the worlds.

    Raises:
        UserError: the base is missing or has no weights, and nothing is known of it from earlier.
        OSError: likewise, if one of its files cannot be read.
    """
    try:
        place = find_source(source, "The base")
        return _of_directory(source, cache) if place.local else _of_hub(source, place)
    except (UserError, OSError) as error:
        known = _remembered(source, cache)
        if known is None:
            raise
        return replace(known, missing=error)


def remember(identity: Identity, source: str, cache: Path) -> None:
    """Note a base's identity beside its worlds, for later starts; a cache that is read-only stays as it is."""
    place = _note(_spelled(source) if identity.files else source, cache)
    if identity.missing is None and _read(place) != identity:
        with contextlib.suppress(OSError):
            write_file(place, json.dumps({"base": source, "digest": identity.digest, "files": identity.files}) + "\n")


def _of_directory(source: str, cache: Path) -> Identity:
    root = Path(source)
    if not any(any(root.glob(pattern)) for pattern in ("*.safetensors", "*.bin")):
        raise UserError(
            f"prepare.base={source} holds no weights (*.safetensors or *.bin); give the directory of the whole model, "
            f"or its hub id."
        )
    names = loaded_files(root, tokenizer=True)
    states = {name: (root / name).stat() for name in names}  # before they are read: a change meanwhile is noticed later
    files = {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}
    known = _read(_note(_spelled(source), cache))
    return known if known is not None and known.files == files else Identity(digest_files(root, names), files)


def _of_hub(source: str, place: Source) -> Identity:
    return Identity(str([place.name, load_config(source)._commit_hash]), {})


def _remembered(source: str, cache: Path) -> Identity | None:
    """Return what is known of a base that is gone; a relative directory that is gone looks like a hub id."""
    return _read(_note(_spelled(source), cache)) or _read(_note(source, cache))


def _spelled(directory: str) -> str:
    return str(Path(directory).absolute())


def _note(name: str, cache: Path) -> Path:
    return cache / f".base-{digest(name)[:12]}.json"


def _read(path: Path) -> Identity | None:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return Identity(noted["digest"], noted["files"])
    except (OSError, ValueError, KeyError, TypeError):  # never written, or torn: the base is read again
        return None
