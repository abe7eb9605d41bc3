"""Which groups make up a round: those of the prompts that it draws, or those that a store has of it."""

from collections.abc import Hashable, Sequence, Set
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from common.config.recipe import AlgorithmSection
from common.leases import Lease, Prompt
from common.prompts import PromptOrder
from deploy.lease_plan import LeasePlan


class Draws(Protocol):
    """The groups of each round, by keys that are known before the groups are."""

    def keys(self, round_: int) -> Sequence[Hashable]:
        """The keys of a round's groups, in the order in which its first pass trains them."""

    def key(self, round_: int, prompt_id: str, group: str) -> Hashable:
        """The key of a group."""


class DrawnPrompts:
    """A round draws prompts, and has one group for each."""

    def __init__(self, algorithm: AlgorithmSection, prompts: Sequence[Prompt], seed: int) -> None:
        self._prompts = prompts
        self._order = PromptOrder(len(prompts), algorithm.prompts_per_round, seed)
        self._drawn: dict[int, list[Prompt]] = {}

    def prompts(self, round_: int) -> list[Prompt]:
        """The prompts that a round draws."""
        if round_ not in self._drawn:
            self._drawn[round_] = [self._prompts[index] for index in self._order.indices(round_)]
        return self._drawn[round_]

    def keys(self, round_: int) -> list[tuple[int, str]]:
        """See `Draws`."""
        return [(round_, prompt.prompt_id) for prompt in self.prompts(round_)]

    def key(self, round_: int, prompt_id: str, group: str) -> tuple[int, str]:
        """See `Draws`."""
        return round_, prompt_id


class StoredGroups:
    """A round has the groups that a store has of it, in the order in which they were committed."""

    def __init__(self, index: pa.Table) -> None:
        self._index = index.select(["round", "group_id"])

    def keys(self, round_: int) -> list[str]:
        """See `Draws`."""
        return self._index.filter(pc.equal(self._index["round"], round_))["group_id"].to_pylist()

    def key(self, round_: int, prompt_id: str, group: str) -> str:
        """See `Draws`."""
        return group


class TrainingLeases:
    """Which leases of which rounds may be given out.

    The bound on staleness is kept by this admission. Round r's groups are trained while the newest proposal version is
    r, so a lease of round r may be sampled from version v only if r - v <= max_staleness; with max_staleness 0 that is
    Algorithm 1 to the letter. Nothing that was sampled is ever dropped. A fixed proposal does not grow old: all rounds
    are admitted at once, and sampled from version 0.
    """

    def __init__(
        self, algorithm: AlgorithmSection, draws: DrawnPrompts, plan: LeasePlan, n: int, *, fixed: bool
    ) -> None:
        self._algorithm = algorithm
        self._draws = draws
        self._plan = plan
        self._n = n
        self._fixed = fixed

    def admitted(self, version: int) -> range:
        """The rounds that may be sampled from `version` while it is the newest."""
        if self._fixed:
            return range(version, self._algorithm.rounds)
        return range(version, min(version + self._algorithm.max_staleness + 1, self._algorithm.rounds))

    def of_round(self, round_: int, version: int, sampled: Set[str], left_out: Set[str]) -> list[Lease]:
        """The leases of a round that are still to be sampled.

        With max_staleness 0 a lease is sampled whole or not at all, so that it gives the same groups whenever that is.

        Args:
            round_: of Algorithm 1.
            version: of the proposal, to sample from.
            sampled: ids of prompts that have a group.
            left_out: ids of prompts that are not to be sampled.
        """
        sampled_from = 0 if self._fixed else version
        leases = self._plan.leases("train", round_, sampled_from, self._n, self._draws.prompts(round_))
        usable = [_without_prompts(lease, left_out) for lease in leases]
        if self._algorithm.strict:
            return [lease for lease in usable if any(prompt.prompt_id not in sampled for prompt in lease.prompts)]
        return [rest for lease in usable if (rest := _without_prompts(lease, sampled)).prompts]


def _without_prompts(lease: Lease, prompts: Set[str]) -> Lease:
    pairs = zip(lease.group_ids, lease.prompts, strict=True)
    return lease.without({group for group, prompt in pairs if prompt.prompt_id in prompts})
