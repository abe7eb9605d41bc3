"""The free slots of a pool's replicas, and the callers that wait for one."""

import asyncio
from collections import deque

from brain_align.deploy.actors.replica import Replica

Grant = asyncio.Future[Replica]


class FreeSlots:
    """Hands replicas to waiting callers: first come, first served; the least busy replica first.

    A caller that wants a replica alone gets an idle one. If none is idle, the least busy one is reserved: it gets no
    further calls until it is idle. The cost of each operation does not grow with the number of replicas.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots  # how many calls a replica takes at once
        self._by_calls: list[dict[Replica, None]] = [{} for _ in range(slots)]  # with a free slot, by calls
        self._waiting: deque[Grant] = deque()
        self._waiting_alone: deque[Grant] = deque()
        self._reserved: dict[Replica, Grant] = {}

    def calls(self, *, alone: bool) -> int:
        """Return how many slots a grant takes."""
        return self._slots if alone else 1

    def ask(self, *, alone: bool) -> Grant:
        """Ask for a replica; when the future is done, its slots are taken."""
        grant: Grant = asyncio.get_running_loop().create_future()
        (self._waiting_alone if alone else self._waiting).append(grant)
        self.hand_out()
        return grant

    def offer(self, replica: Replica) -> None:
        """Offer a replica that has become ready, or that has one more free slot."""
        grant = self._reserved.get(replica)
        if grant is None or grant.done():
            self._reserved.pop(replica, None)
            if replica.calls < self._slots:
                self._put(replica)
        elif replica.calls == 0:
            del self._reserved[replica]
            self._grant(grant, replica, self._slots)
        self.hand_out()

    def withdraw(self, replica: Replica) -> None:
        """Give a replica no further calls; the caller that it was reserved for waits for another."""
        self._remove(replica)
        grant = self._reserved.pop(replica, None)
        if grant is not None and not grant.done():
            self._waiting_alone.appendleft(grant)
            self.hand_out()

    def refuse_all(self, error: Exception) -> None:
        """Fail all waiting callers."""
        for grant in (*self._waiting, *self._waiting_alone, *self._reserved.values()):
            if not grant.done():
                grant.set_exception(error)

    def hand_out(self) -> None:
        """Serve all callers that can be served."""
        while (grant := _first(self._waiting_alone)) is not None and (replica := self._least_busy()) is not None:
            self._waiting_alone.popleft()
            self._remove(replica)
            if replica.calls == 0:
                self._grant(grant, replica, self._slots)
            else:
                self._reserved[replica] = grant
        while (grant := _first(self._waiting)) is not None and (replica := self._least_busy()) is not None:
            self._waiting.popleft()
            self._remove(replica)
            self._grant(grant, replica, 1)
            if replica.calls < self._slots:
                self._put(replica)

    def _grant(self, grant: Grant, replica: Replica, calls: int) -> None:
        replica.take(calls)
        grant.set_result(replica)

    def _least_busy(self) -> Replica | None:
        return next((next(iter(replicas)) for replicas in self._by_calls if replicas), None)

    def _put(self, replica: Replica) -> None:
        self._remove(replica)
        self._by_calls[replica.calls][replica] = None

    def _remove(self, replica: Replica) -> None:
        for replicas in self._by_calls:
            replicas.pop(replica, None)


def _first(waiting: deque[Grant]) -> Grant | None:
    """Return the caller that waits longest, after dropping those that have given up."""
    while waiting and waiting[0].done():
        waiting.popleft()
    return waiting[0] if waiting else None
