"""The value of a text under a causal model with a scalar head, read at the text's last token.

A common beginning of texts is computed once. The texts of a group begin with the same prompt, but not always with the
same tokens: byte-pair encoding may join prompt and output differently for each output, and truncation from the left
moves the window.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from brain_align.common.nn.prefix.decoder import PrefixDecoder
from brain_align.common.nn.prefix.packing import Request


@dataclass(frozen=True)
class SharedPrefix:
    """Texts that begin with the same tokens."""

    length: int  # number of common tokens, at least 1
    texts: tuple[int, ...]  # their indices


def shared_prefixes(texts: Sequence[list[int]]) -> list[SharedPrefix]:
    """Partition texts so that the fewest tokens are computed, with each part's common beginning computed once.

    In sorted order, texts with the same beginning are neighbours, and parts are runs of them; the best of all ways to
    cut the sorted texts into runs is found. The result depends on the texts alone: token ids, at least one per text.
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


class TextValues:
    """Computes values of texts: a causal decoder, and a head from a hidden state to one value."""

    def __init__(self, model: PreTrainedModel, head: nn.Linear, max_tokens: int) -> None:
        """Try the model on packed rows, and use padded ones if the results differ; a pass has max_tokens at most."""
        self.decoder = PrefixDecoder(model)
        self._head = head
        self._max_tokens = max_tokens
        self.decoder.pad_unless_exact()

    def of(self, texts: Sequence[list[int]]) -> list[float]:
        """Return the value of each text; other texts in the call affect it by rounding only.

        A text has at least one token id, and at most the model's context.
        """
        if not texts:
            return []
        parts = shared_prefixes(texts)
        states = self.decoder.last_states([_request(texts, part) for part in parts], self._max_tokens)
        # In float32: bfloat16 would round rewards to steps of 0.016.
        bias = None if self._head.bias is None else self._head.bias.float()
        values = linear(states.float(), self._head.weight.float(), bias).squeeze(-1).tolist()
        order = [index for part in parts for index in part.texts]
        return [value for _, value in sorted(zip(order, values, strict=True))]


def _request(texts: Sequence[list[int]], part: SharedPrefix) -> Request:
    prompt = torch.tensor(texts[part.texts[0]][: part.length], dtype=torch.int64)
    return prompt, [torch.tensor(texts[index][part.length :], dtype=torch.int64) for index in part.texts]


def _common(one: list[int], other: list[int]) -> int:
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


@dataclass(frozen=True)
class _Cut:
    """The best way to cut the first texts: the number of saved tokens, and the start of the last part."""

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
