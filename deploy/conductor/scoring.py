"""From committed groups to scored ones: each scorer takes whatever waits for it, whichever sampler it came from."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.run import TimeoutsSection
from brain_align.common.errors import PipelineError, ScorerAwayError
from brain_align.deploy.actors.actor import ActorLostError
from brain_align.deploy.actors.pool import MAX_ATTEMPTS, Pool
from brain_align.deploy.actors.replica import Slot
from brain_align.deploy.conductor.availability import Availability, has_values
from brain_align.deploy.conductor.background import Begin
from brain_align.deploy.conductor.waiting_groups import Lane, Piece, Queue, Samples, joined
from brain_align.deploy.services.trial import Trial


class Scoring:
    """Gives groups to scorers, and commits what they return.

    A group goes to an idle scorer at once. Where groups wait, a call takes up to `rows` of them, so that groups share
    the cost of a call under load.

    Groups that get no value in a call are asked for again, each alone, and so are halves of a call that fails as a
    whole. A group that fails alone is to blame only if the scorer is up then (`Availability`). It is given up after
    `MAX_ATTEMPTS` such failures: with null values if the scorer says why, else it is quarantined. `lanes` are in the
    order of their priority.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        rows: Mapping[str, int],
        lanes: Sequence[Lane],
        timeouts: TimeoutsSection,
        say: Callable[[str], object],
    ) -> None:
        self._pools = pools
        self._rows = rows  # groups per call, by scorer
        self._timeout = timeouts.lease  # seconds for one call
        self.availability = {
            name: Availability(name, pool, timeouts.lease, timeouts.outage, say) for name, pool in pools.items()
        }
        self._queues = {name: Queue(lanes) for name in pools}
        self._lacking: dict[str, set[str]] = {}  # by group, the scorers whose values it still needs
        self._room = asyncio.Event()
        self._room.set()
        self._most = max([1024, *(32 * most for most in rows.values())])  # no scorer runs where all is scored
        self.longest_queue = 0
        self._begin: Begin

    def tried(self, trials: Mapping[str, Trial]) -> None:
        """Note what scorers have given values: that is what they are asked for when they may be away."""
        for name, trial in trials.items():
            if name in self.availability and trial.groups is not None and trial.scores is not None:
                self.availability[name].answered(trial.groups, trial.scores)

    @property
    def away(self) -> dict[str, str]:
        """The scorers that give no values at present, and why."""
        return {name: one.reason for name, one in self.availability.items() if one.reason is not None}

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
                piece = Piece(samples.groups, first + start, min(most, rows - start))
                self._queues[name].put(samples.lane, piece)
            first += rows

    async def _serve(self, name: str) -> None:
        waiting = self._queues[name]
        while True:
            await waiting.some.wait()
            slot = await self._slot(name)
            self._begin(self._score(name, waiting.take(self._rows[name]), slot, failures=0))

    async def _score(self, name: str, samples: Samples, slot: Slot, failures: int) -> None:
        """Call a scorer once, and see to what follows; `failures` counts those of a group that is alone."""
        try:
            scores: pa.RecordBatch | None = await slot.call("score", samples.groups, timeout=self._timeout)
            error: PipelineError | None = None
        except PipelineError as failure:
            scores = failure.rows if isinstance(failure, ScorerAwayError) else None
            error = failure
        finally:
            slot.release()
        if scores is None:
            assert error is not None, "a call has an answer or an error"
            await self._failed(name, samples, error, failures)
        else:
            away = error.away if isinstance(error, ScorerAwayError) else frozenset()
            await self._take(name, samples, scores, away, failures)

    async def _take(self, name: str, samples: Samples, scores: pa.RecordBatch, away: Set[str], failures: int) -> None:
        """Commit the values of a call; groups without any, or without that of gold, are asked for again, alone."""
        settled = pc.or_(pc.is_valid(scores["gold_value"]), pc.or_(_has_no_gold(samples), pc.is_null(scores["error"])))
        known_to_be = zip(has_values(scores), settled.to_pylist(), samples.ids, strict=True)
        found = [has and has_gold and group not in away for has, has_gold, group in known_to_be]
        doubtful = {group for group, has in zip(samples.ids, found, strict=True) if not has}
        if any(found):
            self.availability[name].answered(samples.groups, scores)
            known = samples.only(set(samples.ids) - doubtful)
            await self._commit(name, known, scores if all(found) else scores.filter(pa.array(found)))
        if not doubtful or len(samples.ids) > 1:
            for group in doubtful:
                self._begin(self._score_part(name, samples.only({group}), 0))
        elif await self._is_to_blame(name, str(scores["error"][0].as_py() or "it gave null."), samples, failures, away):
            await self._commit(name, samples, scores)

    async def _failed(self, name: str, samples: Samples, error: PipelineError, failures: int) -> None:
        """Repeat a call that failed as a whole: in halves, until the group that makes it fail is alone."""
        rows = samples.groups.num_rows
        if isinstance(error, ActorLostError) and error.sent_away:  # the groups are not to blame
            self._begin(self._score_part(name, samples, failures))
        elif rows > 1:
            half = (rows + 1) // 2
            for first in range(0, rows, half):
                part = Samples(samples.lane, joined([Piece(samples.groups, first, min(half, rows - first))]))
                self._begin(self._score_part(name, part, 0))
        elif await self._is_to_blame(name, str(error), samples, failures, samples.ids):
            self._give_up(name, samples, error)

    async def _is_to_blame(self, name: str, reason: str, sample: Samples, failures: int, away: Collection[str]) -> bool:
        """Judge a group that failed alone: return whether it has failed for good; if not, it is asked for again.

        A scorer that is up and says that a group has no value (it is not `away`) says so once more, alone.
        """
        is_up = await self.availability[name].is_up(time.monotonic(), reason)
        if is_up and failures + 1 >= (MAX_ATTEMPTS if away else 2):
            return True
        self._begin(self._score_part(name, sample, failures + is_up))
        return False

    async def _score_part(self, name: str, samples: Samples, failures: int) -> None:
        await self._score(name, samples, await self._slot(name), failures)

    async def _slot(self, name: str) -> Slot:
        """Acquire a slot of a scorer that is not known to be away."""
        while True:
            await self.availability[name].until_back()
            slot = await self._pools[name].acquire()
            if not self.availability[name].is_away:  # it may have been found out meanwhile
                return slot
            slot.release()

    async def _commit(self, name: str, samples: Samples, scores: pa.RecordBatch) -> None:
        await samples.lane.append_scores(name, samples, scores)
        self._done(name, samples)

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


def _has_no_gold(samples: Samples) -> pa.Array:
    return pc.is_null(samples.groups["gold_text"])
