"""Prompts: reading them, skipping what does not fit, and drawing them in a deterministic order."""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.identity import digest, seed_from
from common.leases import Prompt


@dataclass(frozen=True)
class PromptFile:
    """Where prompts stand and which columns hold them."""

    path: Path
    prompt_column: str
    gold_column: str | None


@dataclass(frozen=True)
class PromptSet:
    """The usable prompts of a file, and how many were left out."""

    prompts: list[Prompt]
    too_long: int
    empty: int

    @property
    def skipped(self) -> int:
        """How many rows hold no usable prompt."""
        return self.too_long + self.empty


def load_prompts(file: PromptFile, encode: Callable[[str], list[int]], max_tokens: int) -> PromptSet:
    """Read and tokenise the prompts of a file; empty ones and those over `max_tokens` are skipped and counted.

    Raises:
        UserError: the file is missing, unreadable, lacks a column, or holds no usable prompt.
    """
    prompts, too_long, empty = [], 0, 0
    for number, row in enumerate(read_rows(file.path)):
        text = _text(file, number, row, file.prompt_column)
        gold = None if file.gold_column is None else _text(file, number, row, file.gold_column)
        token_ids = tuple(encode(text))
        if not token_ids:
            empty += 1
        elif len(token_ids) > max_tokens:
            too_long += 1
        else:
            prompts.append(Prompt(digest("prompt", number, text)[:16], text, token_ids, gold))
    if not prompts:
        raise UserError(
            f"{file.path} holds no usable prompt: {empty} are empty and {too_long} are longer than {max_tokens} tokens;"
            f" check the file, or raise data.max_prompt_tokens."
        )
    return PromptSet(prompts, too_long, empty)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl, .jsonl.gz or .parquet file.

    Raises:
        UserError: the file is missing, of another kind, or damaged (with the line).
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the data section of the recipe.")
    try:
        if path.suffix == ".parquet":
            yield from pq.read_table(path).to_pylist()
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            yield from _json_lines(path)
        else:
            raise UserError(f"{path} is neither .jsonl, .jsonl.gz nor .parquet; convert it to one of these.")
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is damaged or not what its name says: {error}; restore or convert it.") from None


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}, is not JSON ({error}); mend or remove the line.") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}, is not a JSON object; mend or remove the line.")
            yield row


def _text(file: PromptFile, number: int, row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise UserError(
            f"{file.path}, row {number + 1}, has no text in column {column!r} (its columns: {', '.join(row)}); set "
            f"data.prompt_column and data.gold_column."
        )
    return value


class PromptOrder:
    """Which prompts each round of Algorithm 1 draws: a seeded shuffle of each epoch, no prompt twice in a round."""

    def __init__(self, prompts: int, per_round: int, seed: int) -> None:
        if per_round > prompts:
            raise UserError(
                f"algorithm.prompts_per_round={per_round} is more than the {prompts} usable training prompts; lower it,"
                f" or bring more prompts."
            )
        self._prompts = prompts
        self._per_round = per_round
        self._seed = seed

    def indices(self, round_: int) -> list[int]:
        """Indices of the prompts of a round (0-based); the few that an epoch's last full round leaves out vary."""
        epoch, slot = divmod(round_, self._prompts // self._per_round)
        generator = np.random.RandomState(seed_from("prompt order", self._seed, epoch) % 2**32)  # a frozen algorithm
        order = generator.permutation(self._prompts)
        return [int(index) for index in order[slot * self._per_round : (slot + 1) * self._per_round]]
