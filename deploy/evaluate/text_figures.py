"""Figures of texts without any model: how varied they are, and how much each repeats itself; pure functions."""

from collections.abc import Iterable, Sequence

Gram = tuple[str, ...]


def n_grams(words: Sequence[str], n: int) -> list[Gram]:
    """Return all runs of n words, in order."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct(texts: Iterable[str], n: int) -> float | None:
    """Return the share of distinct n-grams among all n-grams of all texts (distinct-n, arXiv 1510.03055).

    Words are what stands between white space. The share falls with the number of texts, so only equally many texts can
    be compared. None if no text has n words.

    Example:
        "a b a b" and "a b": of the bigrams ab, ba, ab, ab two are distinct: 0.5.
    """
    grams = [gram for text in texts for gram in n_grams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(text: str, n: int = 4) -> float | None:
    """Return the share of a text's n-grams that have occurred in it before (seq-rep-n, arXiv 1908.04319).

    None for a text of fewer than n words.

    Example:
        n = 2, "a b a b": the second ab of three bigrams: 0.333.
    """
    grams = n_grams(text.split(), n)
    return 1 - len(set(grams)) / len(grams) if grams else None
