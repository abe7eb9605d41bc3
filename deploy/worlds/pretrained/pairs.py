"""Preference pairs of the two tasks, as prompts that a chat model reads and two answers to each.

The files of HH contain offensive text; nothing here prints any of it.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

from brain_align.common.data.conversations import ASSISTANT, USER, Message, as_text
from brain_align.deploy.worlds.corpus import read_rows
from brain_align.deploy.worlds.hh import read_pairs as read_dialogues
from brain_align.deploy.worlds.tldr import baselines, read_summaries

_TURN = re.compile(r"\n\n(Human|Assistant):")
_NEGATIVES = ("the summary of another post", "half of it", "its words shuffled", "the post's own beginning")

_PREFERENCE, _SUMMARY = ("prompt", "chosen", "rejected"), ("prompt", "label")

HUMAN_MEANING = "which of two answers people preferred"
SYNTHETIC_MEANING = (
    f"whether a text is the human summary of this very post, and not {', '.join(_NEGATIVES[:-1])}, or "
    f"{_NEGATIVES[-1]}; no human preferences are behind it"
)


@dataclass(frozen=True)
class Pair:
    """Two outputs for one prompt, whose text `conversations.turns_of` turns back into messages."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Pairs:
    """The usable pairs of all files."""

    pairs: list[Pair]
    meaning: str  # what a reward learnt from them measures
    dropped: dict[str, int]  # unusable rows, by reason


def read_pairs(kind: str, files: Sequence[Path], random: Random) -> Pairs:
    """Read the pairs of a kind: `hh`: dialogues; `tldr`: prompt, chosen and rejected, or prompts with one summary each.

    Of a summary, pairs are made with negatives that are no human judgement, see `tldr.baselines`.

    Raises:
        UserError: a file cannot be read.
    """
    dropped: Counter[str] = Counter()
    if kind == "hh":
        return Pairs(list(_dialogues(files, dropped)), HUMAN_MEANING, dict(dropped))
    others: Counter[str] = Counter()
    rows = list(read_rows(files, _PREFERENCE, others))
    if rows:
        if others and (alone := _count(files, _SUMMARY) - _count(files, (*_PREFERENCE, "label"))):
            others["malformed"] -= alone
            dropped["a summary without a preference, beside others with one"] = alone
        dropped += others  # without those that are 0
        return Pairs(list(_given(rows, dropped)), HUMAN_MEANING, dict(dropped))
    return Pairs(list(_made(files, dropped, random)), SYNTHETIC_MEANING, dict(dropped))


def _count(files: Sequence[Path], columns: tuple[str, ...]) -> int:
    return sum(1 for _ in read_rows(files, columns, Counter()))


def _dialogues(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Pair]:
    for pair in read_dialogues(files, dropped):
        turns = turns_of_dialogue(pair.prompt)
        if turns is None:
            dropped["turns out of order"] += 1
        else:
            yield Pair(as_text(turns), pair.chosen.strip(), pair.rejected.strip())


def turns_of_dialogue(prompt: str) -> list[Message] | None:
    """Return the turns of a dialogue in HH's format up to its last "Assistant:"; None if they do not alternate."""
    roles, contents = _TURN.split(prompt)[1::2], [text.strip() for text in _TURN.split(prompt)[2::2]]
    if roles[0] != "Human" or roles[-1] != "Assistant" or any(one == other for one, other in pairwise(roles)):
        return None
    if not all(contents[:-1]) or contents[-1]:
        return None
    named = {"Human": USER, "Assistant": ASSISTANT}
    return [Message(role=named[role], content=text) for role, text in zip(roles[:-1], contents[:-1], strict=True)]


def _given(rows: Sequence[dict[str, str]], dropped: Counter[str]) -> Iterator[Pair]:
    for row in rows:
        pair = Pair(row["prompt"].strip(), row["chosen"].strip(), row["rejected"].strip())
        if not (pair.prompt and pair.chosen and pair.rejected):
            dropped["an empty text"] += 1
        elif pair.chosen == pair.rejected:
            dropped["equal sides"] += 1
        else:
            yield pair


def _made(files: Sequence[Path], dropped: Counter[str], random: Random) -> Iterator[Pair]:
    rows = read_summaries(files, dropped)
    for number, row in enumerate(rows):
        other = rows[(number + random.randrange(1, len(rows))) % len(rows)]["label"] if rows[1:] else ""
        negatives = [text for text in baselines(random, row["prompt"], row["label"], other) if text.strip()]
        for text in negatives:
            yield Pair(row["prompt"], row["label"].strip(), text.strip())
