"""Whether a scorer answers: texts that have no value are told from a scorer that is away, which is waited for."""

import asyncio
import logging
import time
from collections.abc import Callable

import pyarrow as pa

from brain_align.common.errors import PipelineError, ScorerAwayError
from brain_align.deploy.actors.pool import Pool

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_LOG = logging.getLogger(__name__)


def has_values(scores: pa.RecordBatch) -> list[bool]:
    """Return for each SCORES row whether any output has a value."""
    if not scores["values"].flatten().null_count:
        return [True] * scores.num_rows
    return [any(value is not None for value in values) for values in scores["values"].to_pylist()]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


class Availability:
    """Judges the failures of one scorer, and waits for it while it is away.

    After a failure the scorer is asked for a group that it has given values before, its *witness*. If it gives some,
    the group that failed is to blame. If not, the scorer is away: it is asked for its witness again and again, with
    growing pauses, while all its other calls wait. Before there is a witness, the groups themselves are asked again.
    """

    def __init__(self, name: str, pool: Pool, timeout: float, patience: float, say: Callable[[str], object]) -> None:
        """Take the time limit of a call, and how long the scorer may give no value before the work ends, in seconds."""
        self.reason: str | None = None  # why it gives no values at present
        self._name = name
        self._pool = pool
        self._timeout = timeout
        self._patience = patience
        self._say = say
        self._answered: tuple[pa.RecordBatch, pa.RecordBatch] | None = None  # groups and their scores, some with values
        self._open = asyncio.Event()
        self._open.set()
        self._judging = asyncio.Lock()
        self._pause = _FIRST_PAUSE
        self._away_since = 0.0  # monotonic seconds, like the next two
        self._away_until = 0.0  # when it was last found to be back
        self._confirmed = 0.0  # when it was last asked for its witness and gave values

    @property
    def is_away(self) -> bool:
        """Return whether it has been found to be away, so that nothing but its witness is asked of it."""
        return not self._open.is_set()

    async def until_back(self) -> None:
        """Wait while it is away."""
        await self._open.wait()

    def answered(self, groups: pa.RecordBatch, scores: pa.RecordBatch) -> None:
        """Note that it has given values to some of these groups."""
        self._answered = groups, scores
        if self.reason is not None and self._open.is_set():  # there was no witness until now
            self._is_back()

    async def is_up(self, failed_at: float, reason: str) -> bool:
        """Judge a group that failed alone at some moment: return whether the scorer was up, so that the group is why.

        Where it was not, this waits until it is back, or until the group is worth another try.

        Raises:
            PipelineError: the scorer has been away for too long.
        """
        async with self._judging:
            if failed_at < self._away_until:
                return False
            if failed_at < self._confirmed:
                return True
            asked_at = time.monotonic()
            trouble = await self._ask_witness() if self._answered else reason
            if trouble is None:
                self._confirmed = asked_at
                return True
            await self._wait(trouble)
            return False

    async def _wait(self, trouble: str) -> None:
        if self.reason is None:
            self._away_since = time.monotonic()
            self._say(
                f"WARNING: the scorer {self._name!r} gives no values at present: {_sentence(trouble)} It is "
                f"asked again for up to {self._patience:g} s (timeouts.outage)."
            )
        while True:
            self.reason = trouble
            _LOG.warning("The scorer %r gives no values: %s", self._name, trouble)
            left = self._away_since + self._patience - time.monotonic()
            if left <= 0:
                raise PipelineError(
                    f"The scorer {self._name!r} has given no values for {self._patience:g} s (timeouts.outage): "
                    f"{_sentence(trouble)} No value was left out because of it: mend the scorer, then run the same "
                    f"command again."
                )
            await self._sleep(min(self._pause, left))
            if self._answered is None:
                return
            if (found := await self._ask_witness()) is None:
                self._is_back()
                return
            trouble = found

    async def _sleep(self, seconds: float) -> None:
        if self._answered is not None:  # else other groups are asked meanwhile
            self._open.clear()
        await asyncio.sleep(seconds)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _is_back(self) -> None:
        self._say(f"The scorer {self._name!r} gives values again, after {time.monotonic() - self._away_since:.0f} s.")
        self._away_until = time.monotonic()
        self.reason, self._pause = None, _FIRST_PAUSE
        self._open.set()

    async def _ask_witness(self) -> str | None:
        """Ask for values that it has given before; return why there are none, or None if there are some."""
        assert self._answered is not None, "there is a witness only after an answer"
        groups, scores = self._answered
        place = has_values(scores).index(True)
        witness = pa.concat_batches([groups.slice(place, 1)])  # copied: a slice is sent with the whole batch
        left = self._patience if self.reason is None else self._away_since + self._patience - time.monotonic()
        try:
            async with asyncio.timeout(max(left, _FIRST_PAUSE)):
                slot = await self._pool.acquire(alone=True)  # before all that waits, and would ask in vain
        except TimeoutError:
            return f"no {self._pool.name} is ready."
        try:
            answer = await slot.call("score", witness, timeout=self._timeout)
        except ScorerAwayError as error:  # for some of its outputs, perhaps
            return None if error.rows is not None and any(has_values(error.rows)) else str(error)
        except PipelineError as error:
            return str(error)
        finally:
            slot.release()
        return None if any(has_values(answer)) else str(answer["error"][0].as_py() or "it gave null.")
