"""The toy task of human preferences: Anthropic's HH-RLHF pairs.

The files contain offensive text; nothing here prints any of it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerFast

from brain_align.deploy.worlds.corpus import SPLIT_SIZES, Corpus, read_rows, split_by_prompt
from brain_align.deploy.worlds.language_model import train_tokenizer
from brain_align.deploy.worlds.real import build_real
from brain_align.deploy.worlds.reward_model import Preferences
from brain_align.deploy.worlds.training import Preparation, Recorder
from brain_align.scorer.text_models.formats import HH

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_VOCABULARY = 4096
_PROMPT_TOKENS = 256
_GOLD_TOKENS = 64  # of reference outputs, which the SFT model imitates: short enough to be learnt
_PAIR_TOKENS = 128  # outputs that the reward model compares
_CHARACTERS_PER_TOKEN = 3.8  # a first guess at lengths, before there is a tokenizer
_MEANING = "which of two answers to a dialogue people chose, for helpfulness or harmlessness"


@dataclass(frozen=True)
class Pair:
    """Two last answers to one dialogue; humans preferred `chosen`."""

    prompt: str
    chosen: str
    rejected: str


def build_hh(world: Path, seed: int, files: Sequence[Path], recorder: Recorder) -> dict[str, object]:
    """Build the toy task of HH-RLHF in the directory `world`; return facts about it."""
    random = Random(seed)
    with recorder.stage("data"):
        dropped: Counter[str] = Counter()
        pairs = read_pairs(files, dropped)
        splits = split_by_prompt([(pair.prompt, pair) for pair in pairs], _short_prompts(pairs), random)
        texts = (text for pair in splits["train"] for text in (pair.prompt, pair.chosen, pair.rejected))
        tokenizer = train_tokenizer(texts, _VOCABULARY)
        corpus = _corpus(splits, tokenizer, {"usable": len(pairs), "dropped": dict(dropped)})
    return build_real(Preparation(world, tokenizer, random, recorder), corpus, HH)


def read_pairs(files: Sequence[Path], dropped: Counter[str]) -> list[Pair]:
    """Read pairs of whole dialogues and split off their last answers; count unusable ones by reason (`read_rows`)."""
    pairs = []
    for row in read_rows(files, ("chosen", "rejected"), dropped):
        pair = _pair(row["chosen"], row["rejected"])
        if isinstance(pair, Pair):
            pairs.append(pair)
        else:
            dropped[pair] += 1
    return pairs


def _pair(chosen: str, rejected: str) -> Pair | str:
    """Return the pair, or the reason why it cannot be used."""
    if chosen == rejected:
        return "equal sides"
    prompt, marker, good = chosen.rpartition(_ASSISTANT)
    other_prompt, other_marker, bad = rejected.rpartition(_ASSISTANT)
    if not (marker and other_marker and prompt.startswith(_HUMAN)):
        return "malformed"
    if prompt != other_prompt:
        return "different prompts"
    if _HUMAN in good + bad or not good.strip() or not bad.strip():
        return "no last answer"
    return Pair(prompt + _ASSISTANT, good.rstrip(), bad.rstrip())


def _short_prompts(pairs: Sequence[Pair]) -> set[str]:
    """Return the prompts that are likely to be within the limits."""
    return {
        pair.prompt
        for pair in pairs
        if len(pair.prompt) <= _PROMPT_TOKENS * _CHARACTERS_PER_TOKEN
        and len(pair.chosen) <= _GOLD_TOKENS * _CHARACTERS_PER_TOKEN
    }


def _corpus(splits: Mapping[str, Sequence[Pair]], tokenizer: PreTrainedTokenizerFast, facts: dict[str, Any]) -> Corpus:
    prompts, comparable = {}, {}
    for split, pairs in splits.items():
        sides = ([getattr(pair, side) for pair in pairs] for side in ("prompt", "chosen", "rejected"))
        lengths = zip(*(map(len, tokenizer(texts)["input_ids"]) for texts in sides), strict=True)
        measured = [(pair, sizes) for pair, sizes in zip(pairs, lengths, strict=True) if sizes[0] <= _PROMPT_TOKENS]
        gold = {pair.prompt: _row(pair) for pair, sizes in measured if sizes[1] <= _GOLD_TOKENS}
        prompts[split] = list(gold.values())[: SPLIT_SIZES.get(split)]
        comparable[split] = [pair for pair, sizes in measured if max(sizes[1:]) <= _PAIR_TOKENS]
    facts["pairs"] = {split: {"all": len(splits[split]), "short enough": len(comparable[split])} for split in splits}
    facts["prompts"] = {split: len(rows) for split, rows in prompts.items()}
    return Corpus(
        prompts=prompts,
        texts=[(pair.prompt, (pair.chosen, pair.rejected)) for pair in comparable["train"]],
        preferences=[_preference(pair) for pair in comparable["train"]],
        held_out_preferences=[_preference(pair) for split in SPLIT_SIZES for pair in comparable[split]],
        reward_meaning=_MEANING,
        facts=facts,
    )


def _row(pair: Pair) -> dict[str, str]:
    return {"prompt": pair.prompt, "label": pair.chosen, "chosen": pair.chosen, "rejected": pair.rejected}


def _preference(pair: Pair) -> Preferences:
    return Preferences(pair.prompt, (pair.chosen, pair.rejected), ((0, 1),))
