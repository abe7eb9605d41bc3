"""Who computes what: groups to ranks, and a rank's groups to forward passes that fit into memory.

An objective's gradient for one prompt depends on that prompt's log-probabilities alone, so a group that fits
into one forward pass needs only that one; a larger one is split over its outputs, and needs two passes
(learner/gradients.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.nn.logprobs import parts_within
from learner.batches import GroupBatch


@dataclass(frozen=True)
class Part:
    """Some outputs of one group: a row of [b, n], and columns in it."""

    group: int
    outputs: list[int]


MicroBatch = list[Part]
"""What goes through the model at once."""

Unit = list[MicroBatch]
"""The smallest work that has a gradient: one micro-batch of whole groups, or all those of one group."""


def plan(batch: GroupBatch, ranks: int, max_tokens: int) -> list[list[Unit]]:
    """Each rank's units: a contiguous share of the prompts that are trained, with their valid outputs.

    Args:
        batch: the whole batch, the same on every rank.
        ranks: how many share it.
        max_tokens: padded tokens of a micro-batch; a single output may have more.

    Returns:
        One list of units a rank; empty where there are fewer groups than ranks.
    """
    groups = batch.trained.nonzero().flatten().tolist()
    shares = np.array_split(np.array(groups, dtype=np.int64), ranks)
    return [_units(batch, share.tolist(), max_tokens) for share in shares]


def _units(batch: GroupBatch, groups: Sequence[int], max_tokens: int) -> list[Unit]:
    units: list[Unit] = []
    room = 0
    for group in groups:
        parts = _parts(batch, group, max_tokens)
        cost = len(parts[0].outputs) * _longest_row(batch, parts[0])
        if len(parts) > 1:
            units.append([[part] for part in parts])
            room = 0  # nothing joins a group that was split
        elif cost <= room:
            units[-1][0].append(parts[0])
            room -= cost
        else:
            units.append([[parts[0]]])
            room = max_tokens - cost
    return units


def _parts(batch: GroupBatch, group: int, max_tokens: int) -> list[Part]:
    outputs = batch.valid[group].nonzero().flatten().tolist()
    lengths = batch.lengths[group, outputs].tolist()
    slices = parts_within(max_tokens, len(batch.prompts[group]), lengths)
    return [Part(group, outputs[piece]) for piece in slices]


def _longest_row(batch: GroupBatch, part: Part) -> int:
    return len(batch.prompts[part.group]) + int(batch.lengths[part.group, part.outputs].max())
