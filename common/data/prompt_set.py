"""The prompts of a run, held compactly: a million prompts take only the memory of their texts and token ids."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.data.conversations import is_conversation
from brain_align.common.identity import digest
from brain_align.common.requests import Prompt

_COLUMNS = pa.schema({"row": pa.int64(), "text": pa.string(), "token_ids": pa.list_(pa.int32()), "gold": pa.string()})


@dataclass
class Skipped:
    """Rows without a usable prompt, for one reason."""

    count: int = 0
    first: int | None = None

    def add(self, row: int) -> None:
        """Count a row (1-based)."""
        self.count += 1
        self.first = row if self.first is None else self.first

    def __str__(self) -> str:
        return f"{self.count}" if self.first is None else f"{self.count} (first: row {self.first})"


class PromptSet(Sequence[Prompt]):
    """The usable prompts of a source, in its order, as Arrow columns; a `Prompt` is made on access."""

    def __init__(self) -> None:
        self.too_long = Skipped()  # rows whose prompt has too many tokens
        self.empty = Skipped()  # rows whose prompt is null or only whitespace
        self.without_gold = Skipped()  # rows whose gold output is null
        self.conversations = 0  # prompts that are conversations other than a single user turn
        self._parts: list[pa.RecordBatch] = []
        self._starts = [0]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._starts, index) - 1
        row, text, token_ids, gold = (
            column[index - self._starts[part]].as_py() for column in self._parts[part].columns
        )
        return Prompt(_prompt_id(row, text), text, tuple(token_ids), gold)

    @property
    def nbytes(self) -> int:
        """The memory that the prompts take, in bytes."""
        return sum(part.nbytes for part in self._parts)

    def identities(self) -> Iterator[tuple[str, str | None]]:
        """Yield each prompt's id, which is a digest of row and text, and its gold output."""
        for part in self._parts:
            for row, text, gold in zip(*(part[name].to_pylist() for name in ("row", "text", "gold")), strict=True):
                yield _prompt_id(row, text), gold

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield each prompt's row (1-based) and text."""
        for part in self._parts:
            yield from zip(part["row"].to_pylist(), part["text"].to_pylist(), strict=True)

    def find(self, prompt_id: str, text: str) -> Prompt | None:
        """Return the prompt of an id and text."""
        for part, start in zip(self._parts, self._starts, strict=False):
            for place in pc.indices_nonzero(pc.equal(part["text"], text)).to_pylist():
                if (prompt := self[start + place]).prompt_id == prompt_id:
                    return prompt
        return None

    def token_digest(self) -> str:
        """Return the digest of all prompts' token ids, in their order."""
        ids, lengths = (hashlib.blake2b(digest_size=16) for _ in range(2))
        for part in self._parts:
            ids.update(part["token_ids"].flatten().to_numpy().astype("<i4").tobytes())
            lengths.update(pc.list_value_length(part["token_ids"]).to_numpy().astype("<i4").tobytes())
        return digest(ids.hexdigest(), lengths.hexdigest())

    def add(self, rows: Sequence[tuple[int, str, list[int], str | None]]) -> None:
        """Add prompts: row (1-based), text, token ids, gold output."""
        if rows:
            columns = [
                pa.array(column, kind.type) for column, kind in zip(zip(*rows, strict=True), _COLUMNS, strict=True)
            ]
            self.conversations += sum(is_conversation(text) for _, text, _, _ in rows)
            self._parts.append(pa.RecordBatch.from_arrays(columns, schema=_COLUMNS))
            self._starts.append(len(self) + len(rows))


def _prompt_id(row: int, text: str) -> str:
    return digest("prompt", row - 1, text)[:16]
