"""Batches of token sequences: near-equal lengths together, so that little time goes into padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch

_BUCKET = 64  # batches' worth of sequences that are sorted by length together


@dataclass(frozen=True)
class Example:
    """A text for a language model: its tokens, and the first one that the loss counts."""

    token_ids: list[int]
    loss_from: int = 1


def batches_by_length(lengths: Sequence[int], batch_tokens: int, random: Random) -> Iterator[list[int]]:
    """Yield one epoch of batches of indices in random order, each of at most `batch_tokens` padded tokens."""
    order = list(range(len(lengths)))
    random.shuffle(order)
    bucket = max(1, _BUCKET * batch_tokens // max(1, sum(lengths) // max(1, len(lengths))))
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket):
        batches += _cut(sorted(order[start : start + bucket], key=lengths.__getitem__), lengths, batch_tokens)
    random.shuffle(batches)
    yield from batches


def _cut(indices: list[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Cut indices that are sorted by length into batches; the last one of a batch is its longest."""
    batch: list[int] = []
    for index in indices:
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Stack rows of tokens, padded on the right: [b, s]."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
