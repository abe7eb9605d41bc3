"""The real data of a toy task: texts, reference outputs and preferences, split by prompt."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from brain_align.common.errors import UserError
from brain_align.deploy.worlds.reward_model import Preferences

Item = TypeVar("Item")
SPLIT_SIZES = {"validation": 200, "test": 400}
_SPARE = 1.2  # more are set aside, because some turn out to be too long for the tokenizer


@dataclass(frozen=True)
class Corpus:
    """A split data set without the texts that are too long."""

    prompts: dict[str, list[dict[str, str]]]  # rows of `prompts/SPLIT.jsonl`: prompt, label, and further columns
    # of the training split: prompts, each with the texts that follow it, for language modelling.
    texts: list[tuple[str, tuple[str, ...]]]
    preferences: list[Preferences]  # of the training split
    held_out_preferences: list[Preferences]  # of validation and test
    reward_meaning: str  # what a reward learnt from the preferences measures, in one sentence
    facts: dict[str, Any]  # counts for world.json: rows read, and rows dropped by reason


def read_rows(files: Sequence[Path], columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of .jsonl and .jsonl.gz files that have text in all columns; count the others as malformed.

    Raises:
        UserError: a file cannot be read.
    """
    for path in files:
        try:
            with (
                gzip.open(path, "rt", encoding="utf-8-sig")
                if path.suffix == ".gz"
                else open(path, encoding="utf-8-sig") as file
            ):
                for line in file:
                    row = _row(line, columns)
                    if row is None:
                        dropped["malformed"] += 1
                    else:
                        yield row
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise UserError(f"{path} cannot be read as JSON lines: {error}; replace the file.") from error


def split_by_prompt(items: Sequence[tuple[str, Item]], heldable: set[str], random: Random) -> dict[str, list[Item]]:
    """Split items so that all items of a prompt are in the same split.

    Only prompts in `heldable` may be drawn into validation and test; all others go to the training split.

    Raises:
        UserError: there are too few prompts to leave any for training.
    """
    candidates = sorted(heldable)
    sizes = {split: round(_SPARE * size) for split, size in SPLIT_SIZES.items()}
    wanted = sum(sizes.values())
    if len(candidates) < 2 * wanted:
        raise UserError(
            f"data.path holds {len(candidates)} usable prompts; {2 * wanted} are needed to set {wanted} aside for "
            f"validation and test; add more data."
        )
    drawn = iter(random.sample(candidates, wanted))
    home = {next(drawn): split for split, size in sizes.items() for _ in range(size)}
    splits: dict[str, list[Item]] = {"train": [], **{split: [] for split in SPLIT_SIZES}}
    for prompt, item in items:
        splits[home.get(prompt, "train")].append(item)
    return splits


def _row(line: str, columns: tuple[str, ...]) -> dict[str, str] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(isinstance(row.get(column), str) for column in columns):
        return None
    texts = {column: row[column] for column in columns}
    try:
        "".join(texts.values()).encode()
    except UnicodeEncodeError:  # half of a character, which JSON can spell
        return None
    return texts
