"""Preference pairs from stored groups, under the column names that trainers of DPO read."""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import pyarrow as pa

from brain_align.common.schemas import GROUPS, PRIOR, batch_from_rows
from brain_align.common.store.flat_rows import rewards_of, scores_of
from brain_align.common.store.overlay import Store
from brain_align.deploy.run.stored_source import Ranking

Rewards = list[float | None]


def consecutive(rewards: Rewards) -> Iterator[tuple[int, int]]:
    """Pair neighbours in the order of sampling: 16 pairs of 32 outputs, each output at most once."""
    yield from zip(range(0, len(rewards) - 1, 2), range(1, len(rewards), 2), strict=True)


def best_worst(rewards: Rewards) -> Iterator[tuple[int, int]]:
    """Pair the output with the lowest reward and the one with the highest; of equal ones, the first."""
    known = [number for number, reward in enumerate(rewards) if reward is not None]
    if len(known) > 1:
        by_reward = sorted(known, key=lambda number: rewards[number] or 0.0)
        yield by_reward[0], max(known, key=lambda number: rewards[number] or 0.0)


def every(rewards: Rewards) -> Iterator[tuple[int, int]]:
    """Give all n (n − 1) / 2 pairs."""
    yield from combinations(range(len(rewards)), 2)


PAIRINGS: dict[str, Callable[[Rewards], Iterator[tuple[int, int]]]] = {
    "consecutive": consecutive,
    "best-worst": best_worst,
    "all": every,
}

_OF_GROUP = ("prompt_id", "group_id", "round", "proposal_version")
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("prompt", "chosen", "rejected")),
        *((name, pa.float32()) for name in ("score_chosen", "score_rejected", "margin")),
        *(
            (name, pa.float32()) for name in ("ref_chosen_logps", "ref_rejected_logps")
        ),  # the prior's, as TRL names them
        *((name, GROUPS.field(name).type) for name in _OF_GROUP),
    ]
)


class Pairs:
    """A converter of GROUPS batches into preference pairs: the higher reward is chosen."""

    def __init__(self, store: Store, ranked_by: Ranking, pairing: str) -> None:
        self.schema = _SCHEMA
        self.dropped = {"tied": 0, "without a reward": 0}  # numbers of pairs that were left out
        self._store = store
        self._ranked_by = ranked_by
        self._pairing = PAIRINGS[pairing]

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the pairs of each group, in the order of groups."""
        groups = batch.to_pylist()
        ids = [group["group_id"] for group in groups]
        rewards = rewards_of(self._store, ids, self._ranked_by.reward)
        prior = scores_of(self._store, ids, PRIOR)
        rows: list[dict[str, Any]] = []
        for name, group in zip(ids, groups, strict=True):
            nothing: dict[str, Any] = {"values": [None] * len(group["outputs"])}
            rows += self._pairs(group, rewards.get(name, nothing)["values"], prior.get(name, nothing)["values"])
        return batch_from_rows(self.schema, rows)

    def _pairs(self, group: dict[str, Any], rewards: Rewards, prior: Rewards) -> Iterator[dict[str, Any]]:
        texts = [output["text"] for output in group["outputs"]]
        shared = {name: group[name] for name in _OF_GROUP}
        for pair in self._pairing(rewards):
            first, second = (rewards[number] for number in pair)
            if first is None or second is None:
                self.dropped["without a reward"] += 1
                continue
            if first == second:
                self.dropped["tied"] += 1
                continue
            chosen, rejected = pair if first > second else pair[::-1]
            yield {
                "prompt": group["prompt_text"],
                "chosen": texts[chosen],
                "rejected": texts[rejected],
                "score_chosen": rewards[chosen],
                "score_rejected": rewards[rejected],
                "margin": abs(first - second),
                "ref_chosen_logps": prior[chosen],
                "ref_rejected_logps": prior[rejected],
                **shared,
            }
