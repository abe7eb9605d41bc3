"""What a sample store holds, read with pyarrow alone by the format in docs/store.md: no code of the store is used.

Every row of every commit is kept, also those that a reader of the store would skip because their key was there before:
`tests/chaos/counting.py` counts them.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pyarrow import fs

KINDS = ("steps", "scores", "groups")  # in this order, so that what a listed row refers to is listed as well
VERSION = 3
_PART = re.compile(r"(?:compact-)?\d{8}-[0-9a-f]{8}-(xxh128-[0-9a-f]{32})\.arrow")

Row = dict[str, Any]


@dataclass
class Stored:
    """All rows in the order of commitment, and the files that do not match their checksums or are not parts."""

    groups: list[Row] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """A part whose checksum is right: its rows, and the commits that they belong to, with their numbers of rows."""

    rows: list[Row]
    commits: list[tuple[str, int]]


class StoreReader:
    """Reads a store again and again; a part never changes, so each is fetched once."""

    def __init__(self, files: fs.FileSystem, root: str) -> None:
        self._files = files
        self._root = root
        self._parts: dict[str, _Part] = {}

    def read(self) -> Stored:
        stored = Stored()
        if not self._exists("store.json"):
            return stored
        if (found := json.loads(self._bytes("store.json"))["schema_version"]) != VERSION:
            raise ValueError(f"the store has version {found} of the format, not {VERSION}")
        for kind in KINDS:
            parts = dict(self._parts_of(kind, stored.damaged))
            getattr(stored, kind).extend(_rows_in_order(parts))
        return stored

    def _parts_of(self, kind: str, damaged: list[str]) -> Iterator[tuple[str, _Part]]:
        selector = fs.FileSelector(f"{self._root}/{kind}", allow_not_found=True)
        for name in sorted(info.base_name for info in self._files.get_file_info(selector) if info.is_file):
            path = f"{kind}/{name}"
            if path not in self._parts and (part := self._part(path, name)) is not None:
                self._parts[path] = part
            if path in self._parts:
                yield name, self._parts[path]
            elif not name.startswith(".tmp-"):
                damaged.append(path)

    def _part(self, path: str, name: str) -> _Part | None:
        matched = _PART.fullmatch(name)
        content = self._bytes(path)
        if matched is None or f"xxh128-{xxhash.xxh3_128_hexdigest(content)}" != matched[1]:
            return None
        table = pa.ipc.open_file(pa.py_buffer(content)).read_all()
        listed = table.schema.metadata.get(b"brain.commits")
        commits = json.loads(listed) if listed else [(name.removesuffix(".arrow"), table.num_rows)]
        return _Part(_light(table).to_pylist(), [(commit, rows) for commit, rows in commits])

    def _exists(self, path: str) -> bool:
        return self._files.get_file_info(f"{self._root}/{path}").is_file

    def _bytes(self, path: str) -> bytes:
        with self._files.open_input_file(f"{self._root}/{path}") as file:
            return file.read()


def _light(table: pa.Table) -> pa.Table:
    """Groups without their tokens, which nothing here is counted by."""
    heavy = [name for name in ("prompt_text", "prompt_token_ids", "gold_text") if name in table.column_names]
    if "outputs" in table.column_names:
        sizes = pc.list_value_length(table["outputs"])
        table = table.set_column(table.column_names.index("outputs"), "outputs", sizes)
    return table.drop_columns(heavy)


def _rows_in_order(parts: dict[str, _Part]) -> Iterator[Row]:
    """Each commit from one file: that with the most commits, or whose name sorts first."""
    source: dict[str, str] = {}
    for name in sorted(parts, key=lambda name: (-len(parts[name].commits), name)):
        for commit, _ in parts[name].commits:
            source.setdefault(commit, name)
    rows = {}
    for name, part in parts.items():
        first = 0
        for commit, count in part.commits:
            if source[commit] == name:
                rows[commit] = part.rows[first : first + count]
            first += count
    for commit in sorted(rows):
        yield from rows[commit]
