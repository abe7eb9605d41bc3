"""Preference pairs of the demo: noisy choices between summaries, drawn from the ground truth."""

import math
import re
from itertools import combinations
from random import Random

from brain_align.deploy.demo.lexicon import FACTS, SLOT_OF_WORD
from brain_align.deploy.demo.summaries import draw_skill, write_summary
from brain_align.deploy.demo.truth import quality
from brain_align.deploy.worlds.reward_model import Preferences

_NOISE = 0.05  # quality difference at which the better summary is chosen with probability 0.73
_ORIGINALS = 5
_ALTERED = 3


def draw_preferences(random: Random, prompt: str, story: dict[str, str]) -> Preferences:
    """Draw preferences between all pairs of eight summaries of one post.

    Five are by writers of all skills; three more are copies with one fact made up, so that preferences often depend on
    faithfulness alone, which a reward model can learn only by reading the post.
    """
    originals = [write_summary(random, story, draw_skill(random, gold=n == 0)) for n in range(_ORIGINALS)]
    outputs = tuple(dict.fromkeys([*originals, *(_make_up_a_fact(random, text) for text in originals[:_ALTERED])]))
    scores = quality([prompt] * len(outputs), list(outputs))
    pairs = tuple(
        (a, b) if random.random() < _probability_of_choosing(scores[a] - scores[b]) else (b, a)
        for a, b in combinations(range(len(outputs)), 2)
    )
    return Preferences(prompt, outputs, pairs)


def _probability_of_choosing(advantage: float) -> float:
    """Return the probability of a preference under the Bradley–Terry model."""
    return 1 / (1 + math.exp(-advantage / _NOISE))


def _make_up_a_fact(random: Random, text: str) -> str:
    told = [word for word in re.findall(r"[a-z]+", text) if word in SLOT_OF_WORD]
    if not told:
        return text
    word = random.choice(told)
    return re.sub(rf"\b{word}\b", random.choice(FACTS[SLOT_OF_WORD[word]]), text)
