"""Algorithm 1's bookkeeping, pure: which groups train the next step."""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Sequence

import numpy as np
from typing_extensions import override

from brain_align.common.config.training import AlgorithmSection
from brain_align.common.identity import seed_from
from brain_align.deploy.schedule.round_prompts import RoundGroups


class Schedule(ABC):
    """Decides which groups train which step, as groups become ready.

    Step s is the s-th of the run, from 1; round r, from 0, trains k steps and ends with version r + 1.
    """

    def __init__(self, last_step: int, updates_per_round: int) -> None:
        self.last_step = last_step  # training ends with it
        self.updates_per_round = updates_per_round  # k
        self._ready: set[str] = set()

    def round_of(self, step: int) -> int:
        """Return the round that a step belongs to."""
        return (step - 1) // self.updates_per_round

    def ends_round(self, step: int) -> bool:
        """Return whether a version is published after a step; so it is after step 0, which stands for the prior."""
        return step % self.updates_per_round == 0 or step == self.last_step

    def version_after(self, step: int) -> int:
        """Return the newest version once a step is trained and what it ends is published."""
        return self.round_of(step) + self.ends_round(step)

    @property
    @abstractmethod
    def backlog(self) -> int:
        """The number of groups that are ready and have trained no step yet."""

    @abstractmethod
    def earliest_round(self, round_: int) -> int:
        """Return the first round whose groups may still train once `round_` has begun."""

    @abstractmethod
    def add(self, round_: int, prompt_id: str, group: str) -> None:
        """Count a group as ready: it is sampled and scored."""

    @abstractmethod
    def leave_out(self, round_: int, prompt_id: str, group: str) -> None:
        """Expect a group no longer: what it was to train continues without it."""

    def are_ready(self, groups: Collection[str]) -> bool:
        """Return whether all these groups are ready."""
        return self._ready.issuperset(groups)

    @abstractmethod
    def begin(self, round_: int, taken: Sequence[Sequence[str]]) -> None:
        """Go to a round; `taken` are the groups of each of its steps that are trained already."""

    @abstractmethod
    def next_batch(self) -> list[str] | None:
        """Return the groups of the round's next step, or None while too few are ready."""

    @abstractmethod
    def take(self, groups: Sequence[str]) -> None:
        """Note that these groups have trained the next step."""

    @abstractmethod
    def pass_over(self, groups: Sequence[str]) -> None:
        """Leave out what `next_batch` has returned: it trains nothing, so it is not a step; others take its place."""

    @property
    @abstractmethod
    def is_exhausted(self) -> bool:
        """Return whether all groups that might train the next step are left out."""


class Rounds(Schedule):
    """Trains k steps per round on the groups that are ready.

    A pass goes once through the pool: the round's groups, or all so far with `buffer: accumulate`. Each step takes the
    first groups of the pass that are ready and have not been taken in it. With max_staleness 0 a round's first step
    waits for all its groups, so that their order never depends on which was sampled faster.

    A round has k steps however many of its groups are given up: its passes are shorter then, and the next one begins
    earlier. A pool that is smaller than a batch trains as one batch. The order of a pass is that of the whole pool
    without the groups that are given up, so it does not depend on when they were.

    The cost of a pass is one look at its pool; that of a step within it depends on the batch, not on the pool.
    """

    def __init__(self, algorithm: AlgorithmSection, round_groups: RoundGroups, seed: int) -> None:
        super().__init__(algorithm.rounds * algorithm.updates_per_round, algorithm.updates_per_round)
        self._algorithm = algorithm
        self._round_groups = round_groups
        self._seed = seed
        self._group_of: dict[Hashable, str] = {}  # of the groups that are ready, by key
        self._fresh: dict[str, int] = {}  # groups that are ready and have trained no step, by round
        self._left_out: set[Hashable] = set()
        self._round = -1
        self._pool: list[Hashable] = []
        self._usable = 0  # groups of the pool that are not left out
        self._batch = self._steps_a_pass = 1
        self._pass = 0
        self._steps_taken = 0  # in the pass
        self._used: set[str] = set()  # in the pass
        self._order: list[Hashable] = []  # of the pass
        self._candidates: list[int] = []  # heap of the places in the order whose groups are ready, some of them used
        self._awaited: dict[Hashable, int] = {}  # the places of the others

    @property
    @override
    def backlog(self) -> int:
        return len(self._fresh)

    @override
    def earliest_round(self, round_: int) -> int:
        return 0 if self._algorithm.buffer == "accumulate" else round_

    @override
    def add(self, round_: int, prompt_id: str, group: str) -> None:
        key = self._round_groups.key(round_, prompt_id, group)
        if key in self._group_of:
            return
        self._group_of[key] = group
        self._ready.add(group)
        self._fresh[group] = round_
        place = self._awaited.pop(key, None)
        if place is not None:
            heapq.heappush(self._candidates, place)

    @override
    def leave_out(self, round_: int, prompt_id: str, group: str) -> None:
        key = self._round_groups.key(round_, prompt_id, group)
        self._left_out.add(key)
        self._awaited.pop(key, None)
        self._count_pool()

    @override
    def begin(self, round_: int, taken: Sequence[Sequence[str]]) -> None:
        first = self.earliest_round(round_)
        self._round = round_
        done = {group for step in taken for group in step}
        self._fresh = {group: of for group, of in self._fresh.items() if of >= first and group not in done}
        self._pool = [key for number in range(first, round_ + 1) for key in self._round_groups.keys(number)]
        self._count_pool()
        pass_, self._steps_taken = divmod(len(taken), self._steps_a_pass)
        self._begin_pass(pass_, {group for step in taken[pass_ * self._steps_a_pass :] for group in step})

    @override
    def next_batch(self) -> list[str] | None:
        self._go_to_next_pass_if_done()
        if self._algorithm.strict and self._awaited:
            return None
        places: list[int] = []
        while self._candidates and len(places) < self._batch:
            place = heapq.heappop(self._candidates)
            if self._group(place) not in self._used and self._order[place] not in self._left_out:
                places.append(place)
        for place in places:  # until they are taken
            heapq.heappush(self._candidates, place)
        return [self._group(place) for place in places] if len(places) == self._batch else None

    @override
    def take(self, groups: Sequence[str]) -> None:
        self._go_to_next_pass_if_done()
        self._used.update(groups)
        for group in groups:
            self._fresh.pop(group, None)
        self._steps_taken += 1

    @override
    def pass_over(self, groups: Sequence[str]) -> None:
        left_out = set(groups)
        self._left_out.update(key for key in self._order if self._group_of.get(key) in left_out)
        for group in groups:
            self._fresh.pop(group, None)
        self._count_pool()

    @property
    @override
    def is_exhausted(self) -> bool:
        return not self._usable

    def _count_pool(self) -> None:
        """Set the steps per pass and the groups per step; too many left out end the run elsewhere (`Quarantine`)."""
        left_out = self._left_out
        self._usable = sum(key not in left_out for key in self._pool) if left_out else len(self._pool)
        self._batch = max(1, min(self._algorithm.batch_prompts, self._usable))
        self._steps_a_pass = max(1, self._usable // self._batch)

    def _group(self, place: int) -> str:
        return self._group_of[self._order[place]]

    def _go_to_next_pass_if_done(self) -> None:
        if self._steps_taken >= self._steps_a_pass:
            self._steps_taken = 0
            self._begin_pass(self._pass + 1, set())

    def _begin_pass(self, number: int, used: set[str]) -> None:
        self._pass, self._used = number, used
        self._order = self._shuffled(number)
        self._candidates, self._awaited = [], {}
        for place, key in enumerate(self._order):  # in increasing order, which is a heap
            if key in self._left_out:
                continue
            if key in self._group_of:
                self._candidates.append(place)
            else:
                self._awaited[key] = place

    def _shuffled(self, number: int) -> list[Hashable]:
        if number == 0 and self._algorithm.buffer == "latest":
            return self._pool  # drawn in shuffled order already, and sampled in this one
        generator = np.random.RandomState(seed_from("pass", self._seed, self._round, number) % 2**32)
        return [self._pool[index] for index in generator.permutation(len(self._pool))]


class RecordedSteps(Schedule):
    """Repeats the steps that a store records: the same groups in the same order."""

    def __init__(self, steps: Sequence[Sequence[str]], updates_per_round: int) -> None:
        super().__init__(len(steps), updates_per_round)
        self._steps = list(steps)
        self._done = 0
        self._left_out: set[str] = set()

    @property
    @override
    def backlog(self) -> int:
        return len(self._ready.difference(*self._steps[: self._done]))

    @override
    def earliest_round(self, round_: int) -> int:
        return 0  # a step may have taken groups of any round

    @override
    def add(self, round_: int, prompt_id: str, group: str) -> None:
        self._ready.add(group)

    @override
    def leave_out(self, round_: int, prompt_id: str, group: str) -> None:
        self._left_out.add(group)

    @override
    def begin(self, round_: int, taken: Sequence[Sequence[str]]) -> None:
        self._done = round_ * self.updates_per_round + len(taken)

    @override
    def next_batch(self) -> list[str] | None:
        groups = [group for group in self._steps[self._done] if group not in self._left_out]
        return groups if self.are_ready(groups) else None

    @override
    def take(self, groups: Sequence[str]) -> None:
        self._done += 1

    @override
    def pass_over(self, groups: Sequence[str]) -> None:
        """Repeat one step less."""
        del self._steps[self._done]
        self.last_step -= 1

    @property
    @override
    def is_exhausted(self) -> bool:
        return not self.last_step
