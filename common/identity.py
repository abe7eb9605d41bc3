"""Digests and seeds, which are the same on every machine and after every restart."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def digest(*parts: Any) -> str:
    """Return a 128-bit hex digest of JSON-serialisable parts; equal parts give equal digests everywhere."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_of_many(parts: Iterable[Any]) -> str:
    """Return the digest of any number of JSON-serialisable parts, holding one at a time."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        hasher.update(digest(part).encode())
    return hasher.hexdigest()


def seed_from(*parts: Any) -> int:
    """Return a non-negative 63-bit random seed that depends only on the parts."""
    return int(digest(*parts)[:16], 16) >> 1


def digest_files(root: Path, names: list[str]) -> str:
    """Return the digest of the names and contents of files below `root`, in the order of the names."""
    return digest_contents({name: root / name for name in names})


def digest_contents(places: Mapping[str, Path]) -> str:
    """Return `digest_files` of files whose paths differ from their names in the digest."""
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(places):
        hasher.update(name.encode() + b"\0")
        with open(places[name], "rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
        hasher.update(b"\0")
    return hasher.hexdigest()


def group_id(run_id: str, prompt_id: str, round_: int, proposal_version: int) -> str:
    """Return the deterministic name of a group: committing it twice is harmless (docs/architecture.md, "Rows")."""
    return digest("group", run_id, prompt_id, round_, proposal_version)
