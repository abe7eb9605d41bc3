"""How a published version's weights come into the engine."""

import logging
from itertools import count
from typing import Protocol

from brain_align.common.policies import ProposalVersion
from brain_align.sampler.engine.data import Adapter, NotReceivedError, WeightSource
from brain_align.sampler.engine.engine import Engine

_LOG = logging.getLogger(__name__)

_RECEIVING = 0.5
"""Of a phase's time limit; the engine must then have time to forget what it has received, if that is not all."""


class Delivery(Protocol):
    """One way of delivering weights.

    Attributes:
        capacity: versions that the engine can hold at once.
        reads_files: whether it reads a version's files, which must have been verified before.
    """

    capacity: int
    reads_files: bool

    async def fetch(self, version: ProposalVersion) -> bool:
        """Get hold of a version, verified, while the engine samples from others; what reads files does nothing here.

        Returns:
            Whether it can be put; otherwise its files have to be verified before.
        """

    async def put(self, version: ProposalVersion) -> Adapter | None:
        """Bring a version into the engine, which holds fewer than `capacity`.

        Returns:
            What requests for it have to name; None where the engine holds nothing else.

        Raises:
            UserError: it cannot be loaded. With several versions, the others are as before.
            DeliveryError: it was not loaded for a reason that may pass.
        """

    async def drop(self, adapter: Adapter | None) -> None:
        """Forget a version, which no request may be using; if this breaks off, the next `put` makes up for it."""


class _FromFiles:
    """What reads a version's files when it is put, and has nothing to get hold of before."""

    reads_files = True

    async def fetch(self, version: ProposalVersion) -> bool:
        """See `Delivery`; the files have been verified before."""
        return True


class AdapterSwap(_FromFiles):
    """Adapters side by side on one model: running requests go on with theirs, new ones use the new one at once."""

    def __init__(self, engine: Engine, capacity: int) -> None:
        self.capacity = capacity
        self._engine = engine
        self._ids = count(1)
        self._leftovers: list[Adapter] = []  # what the engine may hold, since a call broke off, and nobody uses

    async def put(self, version: ProposalVersion) -> Adapter:
        """See `Delivery`."""
        await self._remove_leftovers()
        adapter = Adapter(next(self._ids), version.digest, version.path)
        self._leftovers.append(adapter)
        await self._engine.add_adapter(adapter)
        self._leftovers.remove(adapter)
        return adapter

    async def drop(self, adapter: Adapter | None) -> None:
        """See `Delivery`."""
        if adapter is not None:
            self._leftovers.append(adapter)
            await self._remove_leftovers()

    async def _remove_leftovers(self) -> None:
        while self._leftovers:
            await self._engine.remove_adapter(self._leftovers[0])  # after whatever it was asked for before
            del self._leftovers[0]


class WeightsByFile(_FromFiles):
    """Whole models, one after the other: each replaces the weights of the one before."""

    capacity = 1

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def put(self, version: ProposalVersion) -> None:
        """See `Delivery`."""
        await self._engine.load_weights(version.path)

    async def drop(self, adapter: Adapter | None) -> None:
        """See `Delivery`; the next version's weights take their place."""


class WeightsByTransfer(WeightsByFile):
    """Whole models, one after the other, sent by the learner's weight server; by file where that does not work.

    Args:
        sampler: its name, for messages.
        engine: started to receive.
        time_limit: seconds for `fetch`.
    """

    reads_files = False

    def __init__(self, sampler: str, engine: Engine, time_limit: float) -> None:
        super().__init__(engine)
        self._sampler = sampler
        self._time_limit = time_limit
        self._received: str | None = None  # the digest of what the engine has received, and not yet loaded

    async def fetch(self, version: ProposalVersion) -> bool:
        """See `Delivery`."""
        if self._received == version.digest:  # by a lease that was given up then
            return True
        self._received = None
        try:
            await self._receive(version)
        except NotReceivedError as error:
            _LOG.warning(
                "%s takes proposal version %d from its files, since phase `fetch` of its transfer failed "
                "(server: %s): %s",
                self._sampler,
                version.version,
                version.server or "none",
                error,
            )
            return False
        self._received = version.digest
        return True

    async def put(self, version: ProposalVersion) -> None:
        """See `Delivery`."""
        if self._received == version.digest:
            self._received = None
            await self._engine.load_received()
        else:
            await super().put(version)

    async def _receive(self, version: ProposalVersion) -> None:
        if version.server is None:
            raise NotReceivedError("it was published without a weight server")
        limit = _RECEIVING * self._time_limit
        await self._engine.receive_weights(WeightSource(version.server, version.version, version.digest, limit))
