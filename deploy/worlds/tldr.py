"""The toy task of summaries: Reddit posts and paper abstracts, with their human summaries (columns prompt, label).

This data has no human preferences. The reward model is trained to tell the human summary of a text from four negatives:
the summary of another text, half of the summary, its words in random order, and the beginning of the text. Its reward
measures how much an output looks like a complete, well-formed, human-written summary of this text. It is not a human
judgement, and figures of it must not be read as one.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerFast

from brain_align.deploy.worlds.corpus import SPLIT_SIZES, Corpus, read_rows, split_by_prompt
from brain_align.deploy.worlds.language_model import train_tokenizer
from brain_align.deploy.worlds.real import build_real
from brain_align.deploy.worlds.reward_model import Preferences
from brain_align.deploy.worlds.training import Preparation, Recorder
from brain_align.scorer.text_models.formats import START, TLDR, normalise_tldr_prompt

_VOCABULARY = 4096
_PROMPT_TOKENS = 256
_LABEL_TOKENS = 64
_CHARACTERS_PER_TOKEN = 3.8  # a first guess at lengths, before there is a tokenizer
_MARKER = "TL;DR:"
_BODY = re.compile(r"(?:POST|ABSTRACT): *(.*)\n" + _MARKER, re.DOTALL)
_MEANING = (
    "whether a text is the human summary of this very post, and not that of another post, half of it, its words "
    "shuffled, or the post's own beginning; no human preferences are behind it"
)

Row = dict[str, str]


def build_tldr(world: Path, seed: int, files: Sequence[Path], recorder: Recorder) -> dict[str, object]:
    """Build the toy task of summaries in the directory `world`; return facts about it."""
    random = Random(seed)
    with recorder.stage("data"):
        dropped: Counter[str] = Counter()
        rows = read_summaries(files, dropped)
        short = {row["prompt"] for row in rows if len(row["label"]) <= _LABEL_TOKENS * _CHARACTERS_PER_TOKEN}
        splits = split_by_prompt([(row["prompt"], row) for row in rows], short, random)
        texts = (text for row in splits["train"] for text in (START, row["prompt"], row["label"]))
        tokenizer = train_tokenizer(texts, _VOCABULARY)
        prompts = {split: _fitting(tokenizer, found, dropped) for split, found in splits.items()}
        for split, size in SPLIT_SIZES.items():
            prompts[split] = prompts[split][:size]
        corpus = _corpus(prompts, random, {"usable": len(rows), "dropped": dict(dropped)})
    return build_real(Preparation(world, tokenizer, random, recorder), corpus, TLDR)


def read_summaries(files: Sequence[Path], dropped: Counter[str]) -> list[Row]:
    """Read posts and their summaries, which start with one space; count unusable rows by reason, see `read_rows`."""
    rows: dict[str, Row] = {}
    for row in read_rows(files, ("prompt", "label"), dropped):
        if _MARKER not in row["prompt"]:
            dropped["malformed"] += 1
        elif not row["label"].strip():
            dropped["empty label"] += 1
        elif row["prompt"] in rows:
            dropped["prompt seen before"] += 1
        else:
            rows[row["prompt"]] = {"prompt": row["prompt"], "label": " " + row["label"].strip()}
    return list(rows.values())


def baselines(random: Random, prompt: str, label: str, other: str) -> list[str]:
    """Return negatives of a summary: another post's, half of it, its words shuffled, and the post's beginning.

    The last has as many words as the summary, so that length reveals nothing. Texts equal to the summary are skipped.
    """
    words = label.split()
    shuffled = random.sample(words, len(words))
    body = _BODY.search(prompt)
    lead = body[1].split()[: len(words)] if body else []
    texts = [other, *(" " + " ".join(part) for part in (words[: len(words) // 2], shuffled, lead) if part)]
    return [text for text in dict.fromkeys(texts) if text != label]


def _fitting(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    """Cut long posts as the published models' prompts were cut; drop posts with a long summary."""
    fitting: dict[str, Row] = {}
    for row in rows:
        if len(tokenizer(row["label"])["input_ids"]) > _LABEL_TOKENS:
            dropped["label too long"] += 1
            continue
        prompt = normalise_tldr_prompt(tokenizer, row["prompt"], _PROMPT_TOKENS)
        fitting[prompt] = {"prompt": prompt, "label": row["label"]}
    return list(fitting.values())


def _corpus(prompts: dict[str, list[Row]], random: Random, facts: dict[str, Any]) -> Corpus:
    facts["prompts"] = {split: len(rows) for split, rows in prompts.items()}
    held_out = [row for split in SPLIT_SIZES for row in prompts[split]]
    return Corpus(
        prompts=prompts,
        texts=[(row["prompt"], (row["label"],)) for row in prompts["train"]],
        preferences=_preferences(random, prompts["train"]),
        held_out_preferences=_preferences(random, held_out),
        reward_meaning=_MEANING,
        facts=facts,
    )


def _preferences(random: Random, rows: Sequence[Row]) -> list[Preferences]:
    """Return preferences in which the human summary wins against every negative."""
    preferences = []
    for number, row in enumerate(rows):
        other = rows[(number + random.randrange(1, len(rows))) % len(rows)]["label"]
        outputs = (row["label"], *baselines(random, row["prompt"], row["label"], other))
        preferences.append(Preferences(row["prompt"], outputs, tuple((0, n) for n in range(1, len(outputs)))))
    return [item for item in preferences if item.pairs]
