"""All calls of one store, made on one thread, with one append for everything that waits."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pyarrow as pa

from deploy.run_store import RunStore

T = TypeVar("T")

MOST_WAITING = 4096
"""Calls that may wait; who has one more waits until there is room."""

_MOST_ROWS = 4096  # of one append


@dataclass
class _Call:
    """Something to do, and who waits for it."""

    kind: Literal["groups", "scores", "other"]
    work: Any  # a record batch, or a function
    result: asyncio.Future[Any]
    outcome: Any = None
    error: Exception | None = None

    def settle(self) -> None:
        if self.result.done():  # nobody waits any more
            return
        if self.error is None:
            self.result.set_result(self.outcome)
        else:
            self.result.set_exception(self.error)


class StoreThread:
    """A store for an asyncio program: no call blocks the loop, and none runs beside another.

    Groups that wait are committed together, and so are scores: one part, one sync to the disk. Who waits goes on only
    when its rows are durable.

    Args:
        store: used by this thread alone from now on.
        name: of the thread.
    """

    def __init__(self, store: RunStore, name: str) -> None:
        self.store = store
        self.commits = 0
        self.longest = 0  # most calls that ever waited
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(MOST_WAITING)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def append_groups(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Commit groups; returns them as the store has them, where another writer was first with some.

        Raises:
            UserError: see `SampleStore.append_groups`.
        """
        return await self._submit("groups", batch)

    async def append_scores(self, batch: pa.RecordBatch) -> None:
        """Commit scores.

        Raises:
            UserError: see `SampleStore.append_scores`.
        """
        await self._submit("scores", batch)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that uses the store."""
        return await self._submit("other", lambda: function(*args))

    def close(self) -> None:
        """End the thread, after what it has been given."""
        self._calls.put(None)
        self._thread.join()

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _submit(self, kind: Literal["groups", "scores", "other"], work: Any) -> Any:
        async with self._room:
            call = _Call(kind, work, asyncio.get_running_loop().create_future())
            self._calls.put(call)
            self.longest = max(self.longest, self._calls.qsize())
            return await call.result

    def _serve(self) -> None:
        while (first := self._calls.get()) is not None:
            calls, is_last = self._all_waiting(first)
            self._append([call for call in calls if call.kind == "groups"], self._commit_groups)
            self._append([call for call in calls if call.kind == "scores"], self._commit_scores)
            for call in calls:
                if call.kind == "other":
                    _do(call, call.work)
            loop = first.result.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, calls)
            if is_last:
                return

    def _all_waiting(self, first: _Call) -> tuple[list[_Call], bool]:
        """What waits by now, up to a size; and whether it is the last."""
        calls, rows = [first], _rows(first)
        while rows < _MOST_ROWS:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                break
            if call is None:
                return calls, True
            calls.append(call)
            rows += _rows(call)
        return calls, False

    def _append(self, calls: list[_Call], commit: Callable[[pa.RecordBatch], Callable[[int, int], Any]]) -> None:
        """Commit the rows of calls together; each gets its own part of the outcome."""
        if not calls:
            return
        self.commits += 1
        try:
            part_of = commit(_together([call.work for call in calls]))
        except Exception as error:  # noqa: BLE001 - it is for those who wait
            for call in calls:
                call.error = error
            return
        first = 0
        for call in calls:
            call.outcome = part_of(first, call.work.num_rows)
            first += call.work.num_rows

    def _commit_groups(self, batch: pa.RecordBatch) -> Callable[[int, int], pa.RecordBatch]:
        if self.store.append_groups(batch) == batch.num_rows:
            return batch.slice
        stored = self.store.groups(batch["group_id"].to_pylist()).combine_chunks()
        return stored.to_batches()[0].slice

    def _commit_scores(self, batch: pa.RecordBatch) -> Callable[[int, int], None]:
        self.store.append_scores(batch)
        return lambda _first, _rows: None


def _together(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _rows(call: _Call) -> int:
    return 0 if call.kind == "other" else call.work.num_rows


def _do(call: _Call, function: Callable[[], Any]) -> None:
    try:
        call.outcome = function()
    except Exception as error:  # noqa: BLE001 - it is for who waits
        call.error = error


def _settle(calls: list[_Call]) -> None:
    for call in calls:
        call.settle()
