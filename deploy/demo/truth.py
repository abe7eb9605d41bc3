"""The demo's ground truth: how good a summary of a demo post really is.

No model is trained on these numbers directly. The reward model sees only noisy choices between pairs that are drawn
from them, so that the demo can show what a reward-model score is worth: the score rises, and so must the truth.
"""

import re
from functools import cache
from itertools import pairwise

from brain_align.deploy.demo.lexicon import KEY_FACTS, SLOT_OF_WORD
from brain_align.deploy.demo.summaries import CLAUSES, EVENTS, JOINTS

_WORD = re.compile(r"[a-z]+|[^a-z\s]")
_WEIGHTS = {"who": 0.2, "deed": 0.15, "thing": 0.2, "excuse": 0.15, "feel": 0.1, "ask": 0.2}
_FAITHFULNESS_OF_AN_INVENTION = 0.6
_START, _END = "<start>", "<end>"


def quality(prompts: list[str], outputs: list[str]) -> list[float]:
    """True quality of each output as a summary of its prompt, in [0, 1].

    `faithfulness · (0.6 · coverage + 0.25 · fluency + 0.15 · conciseness)`: the weighted share of the post's key facts
    that are told; how much of the wording is grammatical; whether words are spent on facts; and a factor of 0.6 for
    every fact told that is not in the post.

    Args:
        prompts: posts as made by posts.py, ending in `TL;DR:`.
        outputs: one summary for each prompt.

    Returns:
        One number for each pair.
    """
    return [_quality_of_one(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]


def _quality_of_one(prompt: str, output: str) -> float:
    known = set(_words(prompt))
    words = _words(output)
    if not words:
        return 0.0
    told = {word for word in words if word in SLOT_OF_WORD}
    covered = {SLOT_OF_WORD[word] for word in told & known} & set(KEY_FACTS)
    coverage = sum(_WEIGHTS[slot] for slot in covered)
    faithfulness = _FAITHFULNESS_OF_AN_INVENTION ** len(told - known)
    return faithfulness * (0.6 * coverage + 0.25 * _fluency(words) + 0.15 * _conciseness(words, len(covered)))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _conciseness(words: list[str], covered: int) -> float:
    """1 up to 2 words a fact and 3 more; 0 from 8 words beyond that."""
    spent = sum(word.isalpha() for word in words)
    return min(1.0, max(0.0, 1 - (spent - 3 - 2 * covered) / 8))


def _fluency(words: list[str]) -> float:
    """Share of neighbouring words that stand beside each other in some well-formed summary."""
    pairs = list(pairwise([_START, *(SLOT_OF_WORD.get(word, word) for word in words), _END]))
    return sum(pair in _grammar() for pair in pairs) / len(pairs)


@cache
def _grammar() -> frozenset[tuple[str, str]]:
    """All pairs of neighbours, a fact standing for its slot, that summaries.py's clauses and joints allow."""
    events = [_skeleton(form) for forms in EVENTS.values() for form in forms]
    further = [_skeleton(form) for slot, forms in CLAUSES.items() if slot != "city" for form in forms]
    clauses = [words[:-1] if words[-1] in "?." else words for words in events + further]
    pairs = {pair for words in clauses + events + further for pair in pairwise(words)}
    pairs |= {(_START, words[0]) for words in clauses}
    for joint in JOINTS:
        middle = _words(joint)
        pairs |= set(pairwise(middle))
        pairs |= {(words[-1], middle[0]) for words in clauses}
        pairs |= {(middle[-1], words[0]) for words in clauses}
    pairs |= {(words[-1], ".") for words in clauses}
    return frozenset(pairs | {(".", _END), ("?", _END)})


def _skeleton(form: str) -> list[str]:
    return _words(form.replace("{", "").replace("}", ""))
