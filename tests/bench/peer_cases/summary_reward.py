"""The reward of the case smollm: what can be said of a summary without a model.

It rewards words that matter in the post, and takes off for words that are not in it, for long verbatim copies, for
repetition, for length, and for an unfinished sentence. Nobody should train a product on it; both sides of the
benchmark train on the same numbers, and that is what it is for.
"""

import re
from collections import Counter
from itertools import pairwise

_WORD = re.compile(r"[a-z']+")
_SALIENT = 12  # words of a post that a summary can be about
_COPIED, _WORDS = 6, 32  # words that may be copied in a row, and words of a summary, free of charge
_SHORTEST = 4  # letters of a word that counts


def reward(prompts: list[str], outputs: list[str]) -> list[float]:
    """Return the reward of each output as a summary of its prompt, roughly in [-2, 1]."""
    return [_reward(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]


def _reward(prompt: str, output: str) -> float:
    post, words = _WORD.findall(prompt.lower()), _WORD.findall(output.lower())
    if not words:
        return -2.0
    told = {word for word in words if len(word) >= _SHORTEST}
    repeated = 1 - len(set(pairwise(words))) / max(1, len(words) - 1)
    return (
        _coverage(post, told)
        - 0.5 * len(told - set(post)) / max(1, len(told))
        - 0.05 * max(0, _longest_copy(post, words) - _COPIED)
        - 0.05 * max(0, len(words) - _WORDS)
        - 1.0 * max(0.0, repeated)
        - (0.3 if not output.rstrip().endswith((".", "!", "?")) else 0.0)
    )


def _coverage(post: list[str], told: set[str]) -> float:
    """Return how much of the post's salient words is told; a word's weight is the root of its number."""
    counts = Counter(word for word in post if len(word) >= _SHORTEST)
    best = sum(count**0.5 for _, count in counts.most_common(_SALIENT))
    return sum(counts[word] ** 0.5 for word in told) / max(1.0, best)


def _longest_copy(post: list[str], words: list[str]) -> int:
    """Return the length of the longest run of words that stands in the post, too."""
    longest, before = 0, [0] * (len(post) + 1)
    for word in words:
        now = [0] * (len(post) + 1)
        for place, other in enumerate(post):
            if word == other:
                now[place + 1] = before[place] + 1
        longest, before = max(longest, *now), now
    return longest
