"""From committed groups to scored ones: each scorer takes whatever waits for it, whichever sampler it came from."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import pyarrow as pa

from brain_align.common.errors import PipelineError, UserError
from brain_align.deploy.actors.actor import ActorLostError
from brain_align.deploy.actors.pool import MAX_ATTEMPTS, Pool
from brain_align.deploy.actors.replica import Slot
from brain_align.deploy.conductor.background import Begin

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


class _Piece(NamedTuple):
    """Rows that stay together, of groups that were committed together: `rows` of them from `first` on."""

    groups: pa.RecordBatch
    first: int
    rows: int


class _Queue:
    """Groups that wait for one scorer, in the order of their commits in each lane."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._pieces: dict[Lane, deque[_Piece]] = {lane: deque() for lane in lanes}
        self._turns = Turns(lanes)
        self.rows = 0
        self.some = asyncio.Event()

    def put(self, lane: Lane, piece: _Piece) -> None:
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
        return Samples(lane, _joined(taken))


def _joined(pieces: Sequence[_Piece]) -> pa.RecordBatch:
    """Return the rows of pieces, copied: a slice would be sent to another process with the whole batch."""
    runs = [pieces[0]]
    for piece in pieces[1:]:
        groups, first, rows = runs[-1]
        if piece.groups is groups and piece.first == first + rows:
            runs[-1] = _Piece(groups, first, rows + piece.rows)
        else:
            runs.append(piece)
    return pa.concat_batches([groups.slice(first, rows) for groups, first, rows in runs])


class Scoring:
    """Gives groups to scorers, and commits what they return.

    A group goes to an idle scorer at once. Where groups wait, a call takes up to `rows` of them, so that groups share
    the cost of a call under load. A call that fails is repeated in halves until the group that makes it fail is alone;
    that group is given up after it has failed `MAX_ATTEMPTS` times alone. `lanes` are in the order of their
    priority.
    """

    def __init__(
        self, pools: Mapping[str, Pool], rows: Mapping[str, int], timeout: float, lanes: Sequence[Lane]
    ) -> None:
        self._pools = pools
        self._rows = rows  # groups per call, by scorer
        self._timeout = timeout  # seconds for one call
        self._queues = {name: _Queue(lanes) for name in pools}
        self._lacking: dict[str, set[str]] = {}  # by group, the scorers whose values it still needs
        self._room = asyncio.Event()
        self._room.set()
        self._most = max([1024, *(32 * most for most in rows.values())])  # no scorer runs where all is scored
        self.longest_queue = 0
        self._begin: Begin

    @property
    def waiting(self) -> int:
        """The number of groups that lack a value."""
        return len(self._lacking)

    def start(self, begin: Begin) -> None:
        """Keep all scorers at work, in tasks that `begin` starts."""
        self._begin = begin
        for name in self._pools:
            begin(self._serve(name))

    async def room(self) -> None:
        """Wait until so few groups wait for scorers that more may be sampled."""
        await self._room.wait()

    def put(self, samples: Samples, together: Sequence[int] | None = None) -> None:
        """Have committed groups scored by all scorers of their lane.

        `together` says how many of them, in their order, share a call if the scorer takes so many; default: all.
        """
        for name in samples.lane.scorers:
            self._enqueue(name, samples, together or [samples.groups.num_rows])
        self._check_room()

    def put_stored(self, samples: Samples, lacking: Mapping[str, Collection[str]]) -> None:
        """Have groups scored that have some values already; `lacking` names those without, by scorer."""
        for name, lack in lacking.items():
            lacks = samples.only({one for one in samples.ids if one in lack})
            if lacks.ids:  # if not, all have values, perhaps of a scorer that does not run
                self._enqueue(name, lacks, [len(lacks.ids)])
        self._check_room()

    def _enqueue(self, name: str, samples: Samples, together: Sequence[int]) -> None:
        for group in samples.ids:
            self._lacking.setdefault(group, set()).add(name)
        most, first = self._rows[name], 0
        for rows in together:
            for start in range(0, rows, most):
                piece = _Piece(samples.groups, first + start, min(most, rows - start))
                self._queues[name].put(samples.lane, piece)
            first += rows

    async def _serve(self, name: str) -> None:
        waiting = self._queues[name]
        while True:
            await waiting.some.wait()
            slot = await self._pools[name].acquire()
            self._begin(self._score(name, waiting.take(self._rows[name]), slot, failures=0))

    async def _score(self, name: str, samples: Samples, slot: Slot, failures: int) -> None:
        """Call a scorer once; if the call fails, begin what follows from that."""
        try:
            scores = await slot.call("score", samples.groups, timeout=self._timeout)
        except UserError:
            raise
        except PipelineError as error:
            is_blameless = isinstance(error, ActorLostError) and error.sent_away
            self._retry(name, samples, failures if is_blameless else failures + 1, error)
            return
        finally:
            slot.release()
        await samples.lane.append_scores(name, samples, scores)
        self._done(name, samples)

    def _retry(self, name: str, samples: Samples, failures: int, error: PipelineError) -> None:
        rows = samples.groups.num_rows
        if rows == 1 and failures >= MAX_ATTEMPTS:
            self._give_up(name, samples, error)
            return
        half = (rows + 1) // 2 if failures else rows
        for first in range(0, rows, half):
            part = Samples(samples.lane, _joined([_Piece(samples.groups, first, min(half, rows - first))]))
            self._begin(self._score_part(name, part, failures if rows == 1 else 0))

    async def _score_part(self, name: str, samples: Samples, failures: int) -> None:
        await self._score(name, samples, await self._pools[name].acquire(), failures)

    def _give_up(self, name: str, sample: Samples, error: PipelineError) -> None:
        # From here on values of other scorers do not matter, nor that it fails in another one, too.
        if self._lacking.pop(sample.ids[0], None) is None:
            return
        self._check_room()
        sample.lane.failed(name, sample, error)

    def _done(self, name: str, samples: Samples) -> None:
        complete = set()
        for group in samples.ids:
            lacking = self._lacking.get(group)
            if lacking is not None:
                lacking.discard(name)
                if not lacking:
                    del self._lacking[group]
                    complete.add(group)
        if complete:
            self._check_room()
            samples.lane.complete(samples.only(complete))

    def _check_room(self) -> None:
        self.longest_queue = max(self.longest_queue, len(self._lacking))
        if len(self._lacking) < self._most:
            self._room.set()
        else:
            self._room.clear()
