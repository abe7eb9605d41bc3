"""Groups that wait: the lanes that they belong to, the queue of one scorer, and those who wait for groups."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import pyarrow as pa

from brain_align.common.errors import PipelineError

EVALUATION_EVERY = 8
"""While both lanes wait, one request in 8, and one call of a scorer in 8, is evaluation's.

Results come in time this way, and training keeps nearly all samplers and scorers.
"""


class Lane(ABC):
    """A use of scored groups, e.g. training: where their scores go, and what happens then."""

    scorers: Sequence[str]  # those whose values a group needs

    @abstractmethod
    async def append_scores(self, scorer: str, samples: "Samples", scores: pa.RecordBatch) -> None:
        """Make the SCORES rows durable that a scorer has returned for groups."""

    @abstractmethod
    def complete(self, samples: "Samples") -> None:
        """React to groups that now have all the values that they need."""

    @abstractmethod
    def failed(self, scorer: str, sample: "Samples", error: PipelineError) -> None:
        """React to one group that keeps failing in a scorer. It is not scored any more; called once per group."""


L = TypeVar("L", bound=Lane)
T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """Committed groups of one lane; `groups` are GROUPS rows."""

    lane: Lane
    groups: pa.RecordBatch

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the groups."""
        return self.groups["group_id"].to_pylist()

    def only(self, ids: Set[str]) -> "Samples":
        """Return the groups with these ids, in their order."""
        if len(ids) == self.groups.num_rows:
            return self
        return Samples(self.lane, self.groups.filter(pa.array([one in ids for one in self.ids])))


@dataclass
class Turns(Generic[L]):
    """Decides which lane is served next: training's, the first, but every `EVALUATION_EVERY`-th time another's."""

    lanes: Sequence[L]
    _in_a_row: int = 0  # turns of the first lane

    def next(self, waits: Callable[[L], object]) -> L:
        """Return the lane whose turn it is, of those that wait; at least one does."""
        waiting = [lane for lane in self.lanes if waits(lane)]
        lane = waiting[-1] if self._in_a_row >= EVALUATION_EVERY - 1 else waiting[0]
        self._in_a_row = self._in_a_row + 1 if lane is self.lanes[0] else 0
        return lane


class Piece(NamedTuple):
    """Rows that stay together, of groups that were committed together: `rows` of them from `first` on."""

    groups: pa.RecordBatch
    first: int
    rows: int


class Queue:
    """Groups that wait for one scorer, in the order of their commits in each lane."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._pieces: dict[Lane, deque[Piece]] = {lane: deque() for lane in lanes}
        self._turns = Turns(lanes)
        self.rows = 0
        self.some = asyncio.Event()

    def put(self, lane: Lane, piece: Piece) -> None:
        """Add a piece of a lane."""
        self._pieces[lane].append(piece)
        self.rows += piece.rows
        self.some.set()

    def take(self, most: int) -> Samples:
        """Take up to `most` rows of one lane; no piece has more."""
        lane = self._turns.next(self._pieces.__getitem__)
        waiting = self._pieces[lane]
        taken = [waiting.popleft()]
        rows = taken[0].rows
        while waiting and rows + waiting[0].rows <= most:
            taken.append(waiting.popleft())
            rows += taken[-1].rows
        self.rows -= rows
        if not self.rows:
            self.some.clear()
        return Samples(lane, joined(taken))


def joined(pieces: Sequence[Piece]) -> pa.RecordBatch:
    """Return the rows of pieces, copied: a slice would be sent to another process with the whole batch."""
    runs = [pieces[0]]
    for piece in pieces[1:]:
        groups, first, rows = runs[-1]
        if piece.groups is groups and piece.first == first + rows:
            runs[-1] = Piece(groups, first, rows + piece.rows)
        else:
            runs.append(piece)
    return pa.concat_batches([groups.slice(first, rows) for groups, first, rows in runs])


class Pending:
    """The groups that are being sampled or scored, or will be; others wait here until they are complete."""

    def __init__(self, store: str) -> None:
        self._store = store  # for messages
        self._groups: set[str] = set()
        self._changed = asyncio.Event()

    def add(self, groups: Iterable[str]) -> None:
        """Expect groups."""
        self._groups.update(groups)

    def remove(self, groups: Iterable[str] = ()) -> None:
        """Expect groups no longer: they are complete, or given up. Wakes everyone who waits."""
        self._groups.difference_update(groups)
        self._changed.set()

    async def until(self, found: Callable[[], T | None], what: str) -> T:
        """Wait for `what`: until `found()`, asked at each change, returns it.

        This ends, as each call of a service has its time limit; if nobody is making it, with a PipelineError.
        """
        while (value := found()) is None:
            if not self._groups:
                raise PipelineError(
                    f"The run waits for {what}, which no request will produce: the sample store {self._store} has "
                    f"lost data; restore the files in its `damaged` folder, or set another run.dir."
                )
            self._changed.clear()
            await self._changed.wait()
        return value
