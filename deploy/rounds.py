"""Algorithm 1's bookkeeping, pure: which groups train the next step."""

import heapq
from collections.abc import Collection, Hashable, Sequence
from typing import Protocol

import numpy as np

from common.config.recipe import AlgorithmSection
from common.identity import seed_from
from deploy.draws import Draws


class Schedule(Protocol):
    """Which groups train which step, as groups become ready.

    Attributes:
        last_step: training ends with it.
    """

    last_step: int

    def earliest_round(self, round_: int) -> int:
        """The first round whose groups may still train once `round_` has begun."""

    def add(self, round_: int, prompt_id: str, group: str) -> None:
        """A group is sampled and scored."""

    def are_ready(self, groups: Collection[str]) -> bool:
        """Whether all these groups are sampled and scored."""

    def begin(self, round_: int, taken: Sequence[Sequence[str]]) -> None:
        """Go to a round of which some steps are done already, on the groups given for each."""

    def next_batch(self) -> list[str] | None:
        """The groups of the round's next step, or None while too few are ready."""

    def take(self, groups: Sequence[str]) -> None:
        """These groups have trained the next step."""


class Rounds:
    """k steps a round, on the groups that are ready.

    A pass goes once through the pool (the round's groups, or all so far with `buffer: accumulate`); each step takes the
    first groups of the pass that are ready and have not been taken in it. With max_staleness 0 a round's first step
    waits for all its groups, so that their order never depends on who was faster.

    A pass costs one look at its pool; within it, a step costs what its batch does, however large the pool.
    """

    def __init__(self, algorithm: AlgorithmSection, draws: Draws, seed: int) -> None:
        self.last_step = algorithm.rounds * algorithm.updates_per_round
        self._algorithm = algorithm
        self._draws = draws
        self._seed = seed
        self._group_of: dict[Hashable, str] = {}  # of the groups that are ready, by key
        self._ready: set[str] = set()
        self._round = -1
        self._pool: list[Hashable] = []
        self._pass = 0
        self._steps_taken = 0  # in the pass
        self._used: set[str] = set()  # in the pass
        self._order: list[Hashable] = []  # of the pass
        self._candidates: list[int] = []  # heap of the places in the order whose groups are ready, some of them used
        self._awaited: dict[Hashable, int] = {}  # the places of the others

    def earliest_round(self, round_: int) -> int:
        """See `Schedule`."""
        return 0 if self._algorithm.buffer == "accumulate" else round_

    def add(self, round_: int, prompt_id: str, group: str) -> None:
        """See `Schedule`."""
        key = self._draws.key(round_, prompt_id, group)
        if key in self._group_of:
            return
        self._group_of[key] = group
        self._ready.add(group)
        place = self._awaited.pop(key, None)
        if place is not None:
            heapq.heappush(self._candidates, place)

    def are_ready(self, groups: Collection[str]) -> bool:
        """See `Schedule`."""
        return self._ready.issuperset(groups)

    def begin(self, round_: int, taken: Sequence[Sequence[str]]) -> None:
        """See `Schedule`."""
        first = self.earliest_round(round_)
        self._round = round_
        self._pool = [key for number in range(first, round_ + 1) for key in self._draws.keys(number)]
        pass_, self._steps_taken = divmod(len(taken), self._steps_a_pass)
        self._begin_pass(pass_, {group for step in taken[pass_ * self._steps_a_pass :] for group in step})

    def next_batch(self) -> list[str] | None:
        """See `Schedule`."""
        self._go_to_next_pass_if_done()
        if self._algorithm.max_staleness == 0 and self._awaited:
            return None
        places: list[int] = []
        while self._candidates and len(places) < self._algorithm.batch_prompts:
            place = heapq.heappop(self._candidates)
            if self._group(place) not in self._used:
                places.append(place)
        for place in places:  # until they are taken
            heapq.heappush(self._candidates, place)
        return [self._group(place) for place in places] if len(places) == self._algorithm.batch_prompts else None

    def take(self, groups: Sequence[str]) -> None:
        """See `Schedule`."""
        self._go_to_next_pass_if_done()
        self._used.update(groups)
        self._steps_taken += 1

    @property
    def _steps_a_pass(self) -> int:
        return len(self._pool) // self._algorithm.batch_prompts

    def _group(self, place: int) -> str:
        return self._group_of[self._order[place]]

    def _go_to_next_pass_if_done(self) -> None:
        if self._steps_taken == self._steps_a_pass:
            self._steps_taken = 0
            self._begin_pass(self._pass + 1, set())

    def _begin_pass(self, number: int, used: set[str]) -> None:
        self._pass, self._used = number, used
        self._order = self._shuffled(number)
        self._candidates, self._awaited = [], {}
        for place, key in enumerate(self._order):  # in increasing order, which is a heap
            if key in self._group_of:
                self._candidates.append(place)
            else:
                self._awaited[key] = place

    def _shuffled(self, number: int) -> list[Hashable]:
        if number == 0 and self._algorithm.buffer == "latest":
            return self._pool  # drawn in shuffled order already, and sampled in this one
        generator = np.random.RandomState(seed_from("pass", self._seed, self._round, number) % 2**32)
        return [self._pool[index] for index in generator.permutation(len(self._pool))]


class RecordedSteps:
    """The steps that a store records, again: the same groups in the same order."""

    def __init__(self, steps: Sequence[Sequence[str]], updates_per_round: int) -> None:
        self.last_step = len(steps)
        self._steps = steps
        self._updates_per_round = updates_per_round
        self._done = 0
        self._ready: set[str] = set()

    def earliest_round(self, round_: int) -> int:
        """See `Schedule`."""
        return 0  # a step may have taken groups of any round

    def add(self, round_: int, prompt_id: str, group: str) -> None:
        """See `Schedule`."""
        self._ready.add(group)

    def are_ready(self, groups: Collection[str]) -> bool:
        """See `Schedule`."""
        return self._ready.issuperset(groups)

    def begin(self, round_: int, taken: Sequence[Sequence[str]]) -> None:
        """See `Schedule`."""
        self._done = round_ * self._updates_per_round + len(taken)

    def next_batch(self) -> list[str] | None:
        """See `Schedule`."""
        groups = list(self._steps[self._done])
        return groups if self.are_ready(groups) else None

    def take(self, groups: Sequence[str]) -> None:
        """See `Schedule`."""
        self._done += 1
