"""All calls of one store, made on one thread, with one append for everything that waits."""

import asyncio
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import pyarrow as pa

from brain_align.common.store.overlay import Store

T = TypeVar("T")

MOST_WAITING = 4096
"""Calls that may wait; who has one more waits until there is room."""

_MOST_ROWS = 4096  # of one append

Committed = Callable[[pa.RecordBatch, Sequence[int]], None]
"""Is told of groups that were committed together; the numbers say how many of them, in their order, each call had."""

Kind = Literal["groups", "scores", "other"]


@dataclass
class _Call:
    """Something to do, and who waits for it."""

    work: Any  # a record batch, or a function
    result: asyncio.Future[Any]
    outcome: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        if self.result.done():  # nobody waits any more
            return
        if self.error is None:
            self.result.set_result(self.outcome)
        else:
            self.result.set_exception(_raisable(self.error))


class CommitQueue:
    """A store for an asyncio program: no call blocks the loop, and none runs beside another.

    Groups that wait are committed together, and so are scores: one part, one sync to the disk. Who waits goes on only
    when its rows are durable. Other calls come before the next append, so that they wait for one at most.

    Args:
        store: used by this thread alone from now on.
        name: of the thread.
        committed: is told, in the event loop, what was committed, once for all groups of a commit: those who wait for
            them go on after it.
    """

    def __init__(self, store: Store, name: str, committed: Committed) -> None:
        self.store = store
        self.commits = 0
        self.longest = 0  # most calls that ever waited
        self._committed = committed
        self._calls: queue.SimpleQueue[tuple[Kind, _Call] | None] = queue.SimpleQueue()
        self._waiting: dict[Kind, deque[_Call]] = {"groups": deque(), "scores": deque(), "other": deque()}
        self._room = asyncio.Semaphore(MOST_WAITING)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def append_groups(self, batch: pa.RecordBatch) -> None:
        """Commit groups; `committed` is told of them as the store has them, where another writer was first with some.

        Raises:
            UserError: see `SampleStore.append_groups`.
        """
        await self._submit("groups", batch)

    async def append_scores(self, batch: pa.RecordBatch) -> None:
        """Commit scores.

        Raises:
            UserError: see `SampleStore.append_scores`.
        """
        await self._submit("scores", batch)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that uses the store."""
        return await self._submit("other", partial(function, *args))

    def close(self) -> None:
        """End the thread, after what it has been given."""
        self._calls.put(None)
        self._thread.join()

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _submit(self, kind: Kind, work: Any) -> Any:
        async with self._room:
            call = _Call(work, asyncio.get_running_loop().create_future())
            self._calls.put((kind, call))
            return await call.result

    def _serve(self) -> None:
        appends: Iterator[Kind] = itertools.cycle(("groups", "scores"))
        is_last = False
        while not is_last or any(self._waiting.values()):
            is_last = is_last or self._receive()
            self._do_others()
            self._append(next(appends))

    def _receive(self) -> bool:
        """Take what has come by now, or comes next if there is nothing to do; whether it is the last."""
        may_wait = not any(self._waiting.values())
        while True:
            try:
                received = self._calls.get(block=may_wait)
            except queue.Empty:
                break
            if received is None:
                return True
            kind, call = received
            self._waiting[kind].append(call)
            may_wait = False
        self.longest = max(self.longest, sum(map(len, self._waiting.values())))
        return False

    def _do_others(self) -> None:
        calls = [*self._waiting["other"]]
        self._waiting["other"].clear()
        for call in calls:
            try:
                call.outcome = call.work()
            except BaseException as error:  # noqa: BLE001 - it is for who waits, and the thread goes on
                call.error = error
        _settle_in_loop(calls)

    def _append(self, kind: Kind) -> None:
        """Commit rows that wait."""
        if calls := self._next_rows(kind):
            self._commit(kind, calls)

    def _commit(self, kind: Kind, calls: Sequence[_Call]) -> None:
        before: Callable[[], None] | None = None
        try:
            rows = _together([call.work for call in calls])
            if kind == "groups":
                before = self._commit_groups(calls, rows)
            else:
                self.store.append_scores(rows)
        except BaseException as error:  # noqa: BLE001 - it is for those who wait, and the thread goes on
            if len(calls) == 1 or not isinstance(error, pa.ArrowException):
                _fail(calls, error)
                return
            for call in calls:  # the rows of one are at fault: those of the others are committed
                self._commit(kind, [call])
        else:
            _settle_in_loop(calls, before)

    def _commit_groups(self, calls: Sequence[_Call], groups: pa.RecordBatch) -> Callable[[], None]:
        if self.store.append_groups(groups) != groups.num_rows:
            groups = self.store.groups(groups["group_id"].to_pylist()).combine_chunks().to_batches()[0]
        return partial(self._committed, groups, [call.work.num_rows for call in calls])

    def _next_rows(self, kind: Kind) -> list[_Call]:
        """The calls of the next append, up to a size."""
        waiting = self._waiting[kind]
        calls, rows = [], 0
        while waiting and rows < _MOST_ROWS:
            calls.append(waiting.popleft())
            rows += calls[-1].work.num_rows
        self.commits += bool(calls)
        return calls


def _together(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _raisable(error: BaseException) -> Exception:
    """The error, or one from it where a future takes no such error or the event loop would end by it."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    raisable = RuntimeError(f"{type(error).__name__} in a call of the store: {error}")
    raisable.__cause__ = error
    return raisable


def _fail(calls: Sequence[_Call], error: BaseException) -> None:
    for call in calls:
        call.error = error
    _settle_in_loop(calls)


def _settle_in_loop(calls: Sequence[_Call], before: Callable[[], None] | None = None) -> None:
    if calls and not (loop := calls[0].result.get_loop()).is_closed():
        loop.call_soon_threadsafe(_settle, calls, before)


def _settle(calls: Sequence[_Call], before: Callable[[], None] | None) -> None:
    try:
        if before is not None:
            before()
    except Exception as error:  # noqa: BLE001 - it is for those who wait
        for call in calls:
            call.error = error
    for call in calls:
        call.settle()
