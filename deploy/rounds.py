"""Algorithm 1's bookkeeping, pure: which leases may be given out, and which groups train the next step.

The bound on staleness is kept by admission. Round r's groups are trained while the newest proposal version is r, so a
lease of round r may be sampled from version v only if r - v <= max_staleness; with max_staleness 0 that is Algorithm 1
to the letter. Nothing that was sampled is ever dropped.
"""

from collections.abc import Sequence

import numpy as np

from common.config.recipe import AlgorithmSection
from common.identity import group_id, seed_from
from common.leases import Lease, Prompt, Purpose
from common.prompts import PromptOrder


class LeasePlan:
    """Cuts rounds and evaluations into leases; the same cut after every restart."""

    def __init__(self, run_id: str, seed: int, lease_prompts: int) -> None:
        self._run_id = run_id
        self._seed = seed
        self._lease_prompts = lease_prompts

    def leases(self, purpose: Purpose, round_: int, version: int, n: int, prompts: Sequence[Prompt]) -> list[Lease]:
        """Leases for all prompts, in their order."""
        cut = range(0, len(prompts), self._lease_prompts)
        return [
            self._lease(purpose, round_, version, n, index, prompts[start : start + self._lease_prompts])
            for index, start in enumerate(cut)
        ]

    def _lease(
        self, purpose: Purpose, round_: int, version: int, n: int, index: int, prompts: Sequence[Prompt]
    ) -> Lease:
        lease_id = f"{purpose}-{round_:04d}-{index:04d}"
        ids = tuple(group_id(f"{self._run_id}/{purpose}", prompt.prompt_id, round_, version) for prompt in prompts)
        seed = seed_from("lease", self._seed, lease_id)
        return Lease(lease_id, purpose, round_, version, n, seed, ids, tuple(prompts))


class Rounds:
    """Which groups exist for which round, and in which order they train.

    A pass goes once through the pool (the round's groups, or all so far with `buffer: accumulate`); each step takes the
    first groups of the pass that are ready and have not been taken in it.
    """

    def __init__(self, algorithm: AlgorithmSection, prompts: Sequence[Prompt], seed: int) -> None:
        self._algorithm = algorithm
        self._prompts = prompts
        self._seed = seed
        self._order = PromptOrder(len(prompts), algorithm.prompts_per_round, seed)
        self._drawn: dict[int, list[Prompt]] = {}
        self._ready_groups: set[str] = set()
        self._ready: dict[tuple[int, str], str] = {}  # (round, prompt_id) -> group_id

    def prompts(self, round_: int) -> list[Prompt]:
        """The prompts that a round draws."""
        if round_ not in self._drawn:
            self._drawn[round_] = [self._prompts[index] for index in self._order.indices(round_)]
        return self._drawn[round_]

    def admitted(self, version: int) -> range:
        """The rounds that may be sampled from `version` while it is the newest."""
        return range(version, min(version + self._algorithm.max_staleness + 1, self._algorithm.rounds))

    def add(self, round_: int, prompt_id: str, group: str) -> None:
        """A group is sampled and scored."""
        self._ready_groups.add(self._ready.setdefault((round_, prompt_id), group))

    def are_ready(self, groups: Sequence[str]) -> bool:
        """Whether all these groups are ready."""
        return self._ready_groups.issuperset(groups)

    def next_batch(self, round_: int, taken: Sequence[Sequence[str]]) -> list[str] | None:
        """The groups of the round's next step, or None while too few are ready.

        Args:
            round_: the round that is being trained.
            taken: the groups of each step that the round has done already.
        """
        algorithm = self._algorithm
        pool = self._pool(round_)
        steps_per_pass = len(pool) // algorithm.batch_prompts
        pass_number = len(taken) // steps_per_pass
        if algorithm.max_staleness == 0 and any(key not in self._ready for key in pool):
            return None  # a whole round before its first step: the order then never depends on who was faster
        used = {group for step in taken[pass_number * steps_per_pass :] for group in step}
        ready = (self._ready[key] for key in self._shuffled(pool, round_, pass_number) if key in self._ready)
        batch = [group for group in ready if group not in used][: algorithm.batch_prompts]
        return batch if len(batch) == algorithm.batch_prompts else None

    def _pool(self, round_: int) -> list[tuple[int, str]]:
        first = 0 if self._algorithm.buffer == "accumulate" else round_
        return [(number, prompt.prompt_id) for number in range(first, round_ + 1) for prompt in self.prompts(number)]

    def _shuffled(self, pool: list[tuple[int, str]], round_: int, pass_number: int) -> list[tuple[int, str]]:
        if pass_number == 0 and self._algorithm.buffer == "latest":
            return pool  # drawn in shuffled order already, and sampled in this one
        generator = np.random.RandomState(seed_from("pass", self._seed, round_, pass_number) % 2**32)
        return [pool[index] for index in generator.permutation(len(pool))]
