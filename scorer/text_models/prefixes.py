"""Which texts of a group are computed with a common beginning.

The texts of a group begin with the same prompt, but not always with the same tokens: byte-pair encoding may join
prompt and output differently for each output, and truncation from the left moves the window.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SharedPrefix:
    """Texts that begin with the same tokens.

    Attributes:
        length: tokens that they have in common, at least 1.
        texts: their indices.
    """

    length: int
    texts: tuple[int, ...]


def shared_prefixes(texts: Sequence[list[int]]) -> list[SharedPrefix]:
    """Partition texts so that the fewest tokens are computed: each part's common beginning once.

    Sorted, texts that begin alike are neighbours, and parts are runs of them; among all ways to cut the sorted texts
    into runs the best is found. It depends on the texts alone.

    Args:
        texts: token ids, at least one each.
    """
    order = sorted(range(len(texts)), key=lambda index: texts[index])
    shared = [_common(texts[a], texts[b]) for a, b in itertools.pairwise(order)]
    best = [_Cut(0, 0)]  # of the first i texts
    for end in range(1, len(order) + 1):
        best.append(_best_cut(best, shared, end))
    parts = []
    end = len(order)
    while end:
        start = best[end].start
        length = min(shared[start : end - 1], default=len(texts[order[start]]))
        parts.append(SharedPrefix(length, tuple(order[start:end])))
        end = start
    return parts[::-1]


def _common(one: list[int], other: list[int]) -> int:
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


@dataclass(frozen=True)
class _Cut:
    """The best way to cut some texts: tokens that need not be computed, and where the last part starts."""

    saved: int
    start: int


def _best_cut(best: Sequence[_Cut], shared: Sequence[int], end: int) -> _Cut:
    found = _Cut(best[end - 1].saved, end - 1)
    length = None
    for start in range(end - 2, -1, -1):
        length = shared[start] if length is None else min(length, shared[start])
        if not length:
            break
        saved = best[start].saved + (end - start - 1) * length
        if saved > found.saved:
            found = _Cut(saved, start)
    return found
