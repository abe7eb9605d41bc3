"""The division of work: groups over ranks, and a rank's groups over forward passes that fit into memory.

An objective's gradient for one prompt depends on that prompt's log-probabilities alone, so a group that fits into one
forward pass needs only that one; a larger group is split over its outputs and needs two passes
(learner/steps/gradients.py).
"""

from dataclasses import dataclass

import numpy as np

from brain_align.common.nn.prefix.packing import TokenBudget
from brain_align.learner.steps.batches import GroupBatch


@dataclass(frozen=True)
class GroupTexts:
    """Some texts of one group: a row of [b, n + 1], and columns in it; the last column is the gold output's."""

    group: int
    columns: list[int]


MicroBatch = list[GroupTexts]
"""The texts of one forward pass."""

Unit = list[MicroBatch]
"""The smallest work that has a gradient: one micro-batch of whole groups, or all micro-batches of one group."""


def share_out(batch: GroupBatch, ranks: int, budget: TokenBudget) -> list[list[Unit]]:
    """Divide the trained prompts over the ranks, each with a contiguous share of about equal tokens.

    Args:
        batch: the whole batch, the same on every rank.
        ranks: their number.
        budget: of a micro-batch; a single output may exceed it.

    Returns:
        One list of units per rank; empty where there are fewer groups than ranks.
    """
    groups = batch.trained.nonzero().flatten().tolist()
    tokens = [budget.tokens(*_lengths(batch, group)) for group in groups]
    middles = np.cumsum(tokens) - np.array(tokens) / 2
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for group, middle in zip(groups, middles, strict=True):
        shares[int(ranks * middle / sum(tokens))].append(group)
    return [_units(batch, share, budget) for share in shares]


def _units(batch: GroupBatch, groups: list[int], budget: TokenBudget) -> list[Unit]:
    units: list[Unit] = []
    room = 0
    for group in groups:
        parts = _parts(batch, group, budget)
        cost = budget.tokens(*_lengths(batch, group))
        if len(parts) > 1 or not budget.packs(*_lengths(batch, group)):
            # No other group joins a split one, nor one on padded rows, which is a pass of its own: with ZeRO-3 all
            # ranks must make the same number of passes.
            units.append([[part] for part in parts])
            room = 0
        elif cost <= room:
            units[-1][0].append(parts[0])
            room -= cost
        else:
            units.append([parts])
            room = budget.max_tokens - cost
    return units


def _parts(batch: GroupBatch, group: int, budget: TokenBudget) -> list[GroupTexts]:
    columns = batch.computed[group].nonzero().flatten().tolist()
    return [GroupTexts(group, columns[piece]) for piece in budget.parts(*_lengths(batch, group))]


def _lengths(batch: GroupBatch, group: int) -> tuple[int, list[int]]:
    """Return the tokens of the prompt, and of each text to compute."""
    columns = batch.computed[group].nonzero().flatten().tolist()
    return len(batch.prompts[group]), [len(batch.text(group, column)) for column in columns]
