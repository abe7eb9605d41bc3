"""Batches in which every prompt appears once, however many outputs follow it.

A row is `[prompt | output_1 | … | output_n]`. Each output sees the prompt and itself, and its positions go on from the
prompt's end, so that a causal model computes for it exactly what it would compute for `[prompt | output]` alone.
With short outputs this saves most of the work.

The learner's packer (common/nn/prefix/packing.py) makes one unpadded row for an attention of its own. This one makes a
batch of padded rows with a dense mask for the stock attention. The two add up floats in different orders, so replacing
this one would change the weights of every prepared task, and with them the figures of the runs that use them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch

_BUCKET = 64  # the number of batches whose groups are sorted by length together


@dataclass(frozen=True)
class Group:
    """Token sequences that begin with the same `shared` tokens: one prompt and its outputs."""

    rows: tuple[tuple[int, ...], ...]
    shared: int

    def __len__(self) -> int:
        """Return the number of tokens of the packed row."""
        return self.shared + sum(len(row) - self.shared for row in self.rows)

    def place(self, row: int, index: int) -> int:
        """Return the place of token `index` of sequence `row` in the packed row."""
        if index < self.shared:
            return index
        return index + sum(len(other) - self.shared for other in self.rows[:row])


@dataclass(frozen=True)
class Packed:
    """A batch of packed groups."""

    input_ids: torch.Tensor  # [b, s], padded on the right
    position_ids: torch.Tensor  # [b, s]
    attention_mask: torch.Tensor  # [b, 1, s, s], added to attention scores: 0 or the smallest float32


def group_of(rows: Sequence[Sequence[int]], keep: int) -> Group:
    """Group sequences by their longest common prefix, which never includes the last `keep` tokens of a sequence."""
    limit = min(len(row) for row in rows) - keep
    shared = next((i for i in range(limit) if len({row[i] for row in rows}) > 1), max(0, limit))
    return Group(tuple(tuple(row) for row in rows), shared)


def pack(groups: Sequence[Group], padding: int) -> Packed:
    """Pack groups into one batch."""
    width = max(len(group) for group in groups)
    tokens, positions, segments = [], [], []
    for group in groups:
        missing = width - len(group)
        tails = [row[group.shared :] for row in group.rows]
        tokens.append([*group.rows[0][: group.shared], *(t for tail in tails for t in tail), *[padding] * missing])
        positions.append(
            [
                *range(group.shared),
                *(group.shared + i for tail in tails for i in range(len(tail))),
                *[0] * missing,
            ]
        )
        segments.append([0] * group.shared + [n for n, tail in enumerate(tails, 1) for _ in tail] + [-1] * missing)
    return Packed(torch.tensor(tokens), torch.tensor(positions), _mask(torch.tensor(segments)))


def hidden_states(body: torch.nn.Module, groups: Sequence[Group], padding: int) -> torch.Tensor:
    """Return a transformer's last hidden states of packed groups.  # [b, s, h]."""
    packed = pack(groups, padding)
    output = body(
        packed.input_ids, position_ids=packed.position_ids, attention_mask=packed.attention_mask, use_cache=False
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def _mask(segments: torch.Tensor) -> torch.Tensor:
    """Return the additive mask [b, 1, s, s] of segments [b, s]: 0 is the prompt, 1… the outputs, −1 padding."""
    width = segments.shape[1]
    key, query = segments[:, None, :], segments[:, :, None]
    seen = ((key == 0) | (key == query)) & torch.ones(width, width, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
    return mask[:, None]


def batches_by_length(lengths: Sequence[int], batch_tokens: int, random: Random) -> Iterator[list[int]]:
    """Yield one epoch of batches of indices in random order, each of at most `batch_tokens` padded tokens.

    Similar lengths go together, so that there is little padding. An item longer than that is a batch of its own.
    """
    order = list(range(len(lengths)))
    random.shuffle(order)
    bucket = max(1, _BUCKET * batch_tokens * len(lengths) // max(1, sum(lengths)))
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket):
        batches += _cut(sorted(order[start : start + bucket], key=lengths.__getitem__), lengths, batch_tokens)
    random.shuffle(batches)
    yield from batches


def _cut(indices: list[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Cut indices sorted by length into batches; the last item of a batch is its longest."""
    batch: list[int] = []
    for index in indices:
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
