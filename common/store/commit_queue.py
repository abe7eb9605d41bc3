"""A queue of calls to one store: one thread makes them all, with one append for all rows that wait."""

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
"""Maximum number of waiting calls; further callers wait until there is room."""

_MOST_ROWS = 4096  # per append

Committed = Callable[[pa.RecordBatch, Sequence[int]], None]
"""Called with groups that were committed together, and how many of them, in order, each call had brought."""

Kind = Literal["groups", "scores", "other"]


@dataclass
class _Call:
    """A call to the store, and the future of its caller."""

    work: Any  # a record batch, or a function
    result: asyncio.Future[Any]
    outcome: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        if self.result.done():  # nobody waits for it any longer
            return
        if self.error is None:
            self.result.set_result(self.outcome)
        else:
            self.result.set_exception(_raisable(self.error))


class CommitQueue:
    """A store for an asyncio program: no call blocks the loop, and no two calls run at the same time.

    Groups that wait are committed together, and so are scores: one part, one sync to the disk. A caller continues only
    when its rows are durable. Other calls go before the next append, so they wait for at most one append. `committed`
    is called in the event loop once per commit of groups, before their callers continue. Nobody else may use the store.
    """

    def __init__(self, store: Store, name: str, committed: Committed) -> None:
        self.store = store
        self.commits = 0
        self.longest = 0  # largest number of calls that ever waited
        self._committed = committed
        self._calls: queue.SimpleQueue[tuple[Kind, _Call] | None] = queue.SimpleQueue()
        self._waiting: dict[Kind, deque[_Call]] = {"groups": deque(), "scores": deque(), "other": deque()}
        self._room = asyncio.Semaphore(MOST_WAITING)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def append_groups(self, batch: pa.RecordBatch) -> None:
        """Commit groups; raise what `SampleStore.append_groups` raises.

        `committed` gets them as the store has them, even those that another writer committed first.
        """
        await self._submit("groups", batch)

    async def append_scores(self, batch: pa.RecordBatch) -> None:
        """Commit scores; raise what `SampleStore.append_scores` raises."""
        await self._submit("scores", batch)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that uses the store, on its thread."""
        return await self._submit("other", partial(function, *args))

    def close(self) -> None:
        """End the thread once it has made all calls."""
        self._calls.put(None)
        self._thread.join()

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
            if calls := self._next_rows(kind := next(appends)):
                self._commit(kind, calls)

    def _receive(self) -> bool:
        """Take all calls that have arrived, or wait for one if there is no work; return whether it is the end."""
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
        calls, self._waiting["other"] = [*self._waiting["other"]], deque()
        for call in calls:
            try:
                call.outcome = call.work()
            except BaseException as error:  # noqa: BLE001 - it goes to the caller, and the thread continues
                call.error = error
        _settle_in_loop(calls)

    def _commit(self, kind: Kind, calls: Sequence[_Call]) -> None:
        before: Callable[[], None] | None = None
        try:
            rows = pa.concat_batches([call.work for call in calls]) if len(calls) > 1 else calls[0].work
            if kind == "groups":
                before = self._commit_groups(calls, rows)
            else:
                self.store.append_scores(rows)
        except BaseException as error:  # noqa: BLE001 - it goes to the callers, and the thread continues
            if len(calls) == 1 or not isinstance(error, pa.ArrowException):
                for call in calls:
                    call.error = error
                _settle_in_loop(calls)
                return
            for call in calls:  # one call has invalid rows: those of the others are committed
                self._commit(kind, [call])
        else:
            _settle_in_loop(calls, before)

    def _commit_groups(self, calls: Sequence[_Call], groups: pa.RecordBatch) -> Callable[[], None]:
        if self.store.append_groups(groups) != groups.num_rows:
            groups = self.store.groups(groups["group_id"].to_pylist()).combine_chunks().to_batches()[0]
        return partial(self._committed, groups, [call.work.num_rows for call in calls])

    def _next_rows(self, kind: Kind) -> list[_Call]:
        """Take the calls of the next append, up to a number of rows."""
        waiting = self._waiting[kind]
        calls, rows = [], 0
        while waiting and rows < _MOST_ROWS:
            calls.append(waiting.popleft())
            rows += calls[-1].work.num_rows
        self.commits += bool(calls)
        return calls


def _raisable(error: BaseException) -> Exception:
    """Return the error, or a RuntimeError from it if a future or the event loop could not take it."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    raisable = RuntimeError(f"{type(error).__name__} in a call of the store: {error}")
    raisable.__cause__ = error
    return raisable


def _settle_in_loop(calls: Sequence[_Call], before: Callable[[], None] | None = None) -> None:
    if calls and not (loop := calls[0].result.get_loop()).is_closed():
        loop.call_soon_threadsafe(_settle, calls, before)


def _settle(calls: Sequence[_Call], before: Callable[[], None] | None) -> None:
    try:
        if before is not None:
            before()
    except Exception as error:  # noqa: BLE001 - it goes to the callers
        for call in calls:
            call.error = error
    for call in calls:
        call.settle()
