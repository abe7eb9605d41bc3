"""From committed groups to scored ones: every scorer takes what waits for it, whoever sampled it."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from brain_align.common.errors import PipelineError, UserError
from brain_align.deploy.actors.actor import ActorLostError
from brain_align.deploy.actors.pool import MAX_ATTEMPTS, Pool
from brain_align.deploy.actors.replica import Slot

Begin = Callable[[Coroutine[Any, Any, None]], None]
"""Starts a task."""


@dataclass(frozen=True)
class Samples:
    """Committed groups, for training or for evaluation; `groups` are GROUPS rows."""

    training: bool
    groups: pa.RecordBatch

    @cached_property
    def ids(self) -> list[str]:
        """Of the groups."""
        return self.groups["group_id"].to_pylist()


class _Piece(NamedTuple):
    """Rows that stay together, of groups that were committed together: `rows` of them from `first` on."""

    groups: pa.RecordBatch
    first: int
    rows: int


class Commits(Protocol):
    """What takes in scores, see `brain_align.common.store.commit_queue.CommitQueue`."""

    async def append_scores(self, batch: pa.RecordBatch) -> None:
        """Commit scores."""


class Events:
    """What `Scoring` tells: to be overridden by whoever wants to know."""

    def scored(self, scorer: str, samples: Samples, scores: pa.RecordBatch) -> None:
        """A scorer's values are committed."""

    def complete(self, samples: Samples, groups: Collection[str]) -> None:
        """Some of the groups have all the values that they need."""

    def failed(self, scorer: str, samples: Samples, error: PipelineError) -> None:
        """A group, alone here, keeps failing in a scorer, and is not scored any more; told once a group."""


class _Queue:
    """Groups that wait for one scorer: training's first, but for every eighth call."""

    def __init__(self) -> None:
        self._training: deque[_Piece] = deque()
        self._other: deque[_Piece] = deque()
        self._calls = 0
        self.rows = 0
        self.some = asyncio.Event()

    def put(self, training: bool, piece: _Piece) -> None:
        (self._training if training else self._other).append(piece)
        self.rows += piece.rows
        self.some.set()

    def take(self, most: int) -> Samples:
        """Up to `most` rows for one of the two; no piece has more."""
        self._calls += 1
        waiting = (self._other or self._training) if self._calls % 8 == 0 else (self._training or self._other)
        training = waiting is self._training
        taken = [waiting.popleft()]
        rows = taken[0].rows
        while waiting and rows + waiting[0].rows <= most:
            taken.append(waiting.popleft())
            rows += taken[-1].rows
        self.rows -= rows
        if not self.rows:
            self.some.clear()
        return Samples(training, _joined(taken))


def _joined(pieces: Sequence[_Piece]) -> pa.RecordBatch:
    """The rows of pieces, copied: a record batch goes to another process with all of what it is a slice of."""
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

    A group goes to an idle scorer at once. Where groups wait, a call takes up to `rows` of them, so that what a call
    costs is shared out under load. A call that fails is tried again in halves, until the group that makes it fail is
    alone, and that one is given up after `MAX_ATTEMPTS` alone.

    Args:
        pools: of the scorers, by name.
        rows: groups a call, by scorer.
        timeout: seconds for one call.
        events: is told what happens.
    """

    def __init__(self, pools: Mapping[str, Pool], rows: Mapping[str, int], timeout: float, events: Events) -> None:
        self._pools = pools
        self._rows = rows
        self._timeout = timeout
        self._events = events
        self._queues = {name: _Queue() for name in pools}
        self._lacking: dict[str, set[str]] = {}  # the scorers whose values a group has still to get
        self._stores: dict[bool, Commits] = {}
        self._room = asyncio.Event()
        self._room.set()
        self._most = max([1024, *(32 * most for most in rows.values())])  # where all is scored, no scorer runs
        self.longest_queue = 0
        self._begin: Begin

    @property
    def waiting(self) -> int:
        """Groups that lack a value."""
        return len(self._lacking)

    def start(self, begin: Begin, training: Commits, evaluation: Commits) -> None:
        """Keep all scorers at work, in tasks that `begin` starts."""
        self._begin = begin
        self._stores = {True: training, False: evaluation}
        for name in self._pools:
            begin(self._serve(name))

    async def room(self) -> None:
        """Wait until so few groups wait for scorers that more may be sampled."""
        await self._room.wait()

    def put(self, samples: Samples, scorers: Iterable[str], together: Sequence[int] | None = None) -> None:
        """Have groups scored.

        Args:
            samples: committed groups.
            scorers: whose values they need.
            together: how many of the groups, in their order, come to a scorer in one call if it takes so many; default:
                all of them.
        """
        for name in scorers:
            self._enqueue(name, samples.training, samples.groups, samples.ids, together or [samples.groups.num_rows])
        self._check_room()

    def put_stored(self, samples: Samples, lacking: Mapping[str, Collection[str]]) -> None:
        """Have groups scored that have some values already.

        Args:
            samples: committed groups.
            lacking: the scorers whose values they need, each with the groups that lack them.
        """
        ids = samples.ids
        for name, lack in lacking.items():
            places = [place for place, one in enumerate(ids) if one in lack]
            if places:  # if not: of all of them there are values, perhaps of a scorer that does not run
                lacks = samples.groups if len(places) == len(ids) else samples.groups.take(pa.array(places))
                self._enqueue(name, samples.training, lacks, [ids[place] for place in places], [len(places)])
        self._check_room()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _enqueue(
        self, name: str, training: bool, groups: pa.RecordBatch, ids: Sequence[str], together: Sequence[int]
    ) -> None:
        for group in ids:
            self._lacking.setdefault(group, set()).add(name)
        most, first = self._rows[name], 0
        for rows in together:
            for start in range(0, rows, most):
                self._queues[name].put(training, _Piece(groups, first + start, min(most, rows - start)))
            first += rows

    async def _serve(self, name: str) -> None:
        waiting = self._queues[name]
        while True:
            await waiting.some.wait()
            slot = await self._pools[name].acquire()
            self._begin(self._score(name, waiting.take(self._rows[name]), slot, failures=0))

    async def _score(self, name: str, samples: Samples, slot: Slot, failures: int) -> None:
        """One call of a scorer, and what its failure makes necessary."""
        try:
            scores = await slot.call("score", samples.groups, timeout=self._timeout)
        except UserError:
            raise
        except PipelineError as error:
            self._again(name, samples, failures if _is_blameless(error) else failures + 1, error)
            return
        finally:
            slot.release()
        await self._stores[samples.training].append_scores(scores)
        self._events.scored(name, samples, scores)
        self._done(name, samples)

    def _again(self, name: str, samples: Samples, failures: int, error: PipelineError) -> None:
        rows = samples.groups.num_rows
        if rows == 1 and failures >= MAX_ATTEMPTS:
            self._give_up(name, samples, error)
            return
        half = (rows + 1) // 2 if failures else rows
        for first in range(0, rows, half):
            part = Samples(samples.training, _joined([_Piece(samples.groups, first, min(half, rows - first))]))
            self._begin(self._score_part(name, part, failures if rows == 1 else 0))

    async def _score_part(self, name: str, samples: Samples, failures: int) -> None:
        await self._score(name, samples, await self._pools[name].acquire(), failures)

    def _give_up(self, name: str, samples: Samples, error: PipelineError) -> None:
        # What other scorers say of it does not matter any more, nor that it fails in another one, too.
        if self._lacking.pop(samples.ids[0], None) is None:
            return
        self._check_room()
        self._events.failed(name, samples, error)

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
            self._events.complete(samples, complete)

    def _check_room(self) -> None:
        self.longest_queue = max(self.longest_queue, len(self._lacking))
        if len(self._lacking) < self._most:
            self._room.set()
        else:
            self._room.clear()


def _is_blameless(error: PipelineError) -> bool:
    return isinstance(error, ActorLostError) and error.sent_away
