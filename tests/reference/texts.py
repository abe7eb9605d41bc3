"""Texts to score, with all that can go wrong in a text: real ones where the data is there."""

import gzip
import json
from collections.abc import Iterator
from random import Random

from tests.locations import SHARED

DATA = SHARED / "data"
EOS = "<|endoftext|>"

Group = tuple[str, list[str]]
"""A prompt and its outputs."""

POST = "SUBREDDIT: r/cats\nTITLE: the cat\nPOST: The cat sat on the mat, all day, and would not move.\nTL;DR:"
DIALOGUE = "\n\nHuman: Where is the cat?\n\nAssistant: On the mat.\n\nHuman: Why?\n\nAssistant:"


def variants(outputs: list[str]) -> list[str]:
    """Some outputs, and what a sampler might make of the first."""
    first = outputs[0]
    half = first[: len(first) // 2]
    return [*outputs, "", half, half, f"{half}{EOS}{first}", f" TL;DR: {first}", " ß日本 🐈 naïve"]


def made_up(prompt: str, longest: int) -> Iterator[Group]:
    """Groups from one prompt, which is repeated up to `longest` times."""
    outputs = [" cat sat on the mat", "\n\nThe cat sat.", "sat", " cat " * 40]
    for times in (1, 3, longest):
        head, _, tail = prompt.rpartition("\n")
        yield f"{head * times}\n{tail}", variants(outputs)
    yield f"It says TL;DR: so.\n{prompt}", variants(outputs)
    yield "", variants(outputs)


def tldr(posts: int) -> Iterator[Group]:
    """Real posts; every fifth is several posts long."""
    with open(DATA / "tldr" / "tldr.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random = Random(0)
    for number, row in enumerate(rows[:posts]):
        head = row["prompt"].split("TL;DR:")[0]
        if number % 5 == 0:
            head = "".join(other["prompt"] for other in rows[number : number + 4])
        yield f"{head}TL;DR:", variants([f" {row['label']}", f" {random.choice(rows)['label']}"])


def hh(dialogues: int) -> Iterator[Group]:
    """Real dialogues; every tenth is many dialogues long."""
    with gzip.open(DATA / "hh" / "helpful-base.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for number, row in enumerate(rows[:dialogues]):
        prompt, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
        rejected = row["rejected"].rpartition("\n\nAssistant:")[2]
        if number % 10 == 0:
            prompt = "".join(other["chosen"] for other in rows[number : number + 10]) + prompt
        yield f"{prompt}\n\nAssistant:", variants([chosen, rejected])
