"""The ways in which a published version's weights get into the engine."""

import logging
from abc import ABC, abstractmethod
from itertools import count

from typing_extensions import override

from brain_align.common.policies import ProposalVersion
from brain_align.sampler.engine.data import Adapter
from brain_align.sampler.weights.engine_weights import EngineWeights
from brain_align.sampler.weights.receiving import NotReceivedError, WeightSource

_LOG = logging.getLogger(__name__)

_RECEIVING = 0.5
"""Share of a phase's time limit; the rest lets the engine drop an incomplete reception."""


class Delivery(ABC):
    """One way of delivering weights.

    Attributes:
        capacity: versions that the engine can hold at once.
        reads_files: whether it reads a version's files, which must have been verified before.
    """

    capacity: int
    reads_files = True

    async def fetch(self, version: ProposalVersion) -> bool:
        """Obtain a version, verified, while the engine samples from others.

        Returns:
            Whether it can be put; otherwise its files have to be verified before.
        """
        return True

    @abstractmethod
    async def put(self, version: ProposalVersion) -> Adapter | None:
        """Bring a version into the engine, which holds fewer than `capacity`.

        Returns:
            The adapter that requests for it must name; None for a whole model.

        Raises:
            UserError: it cannot be loaded. With several versions, the others are as before.
            DeliveryError: it was not loaded for a reason that may pass.
        """

    @abstractmethod
    async def drop(self, adapter: Adapter | None) -> None:
        """Drop a version that no request uses; if this breaks off, the next `put` makes up for it."""


class AdapterSwap(Delivery):
    """Adapters side by side on one model: running requests keep theirs, new ones use the new one at once."""

    def __init__(self, weights: EngineWeights, capacity: int) -> None:
        self.capacity = capacity
        self._weights = weights
        self._ids = count(1)
        self._leftovers: list[Adapter] = []  # unused ones that the engine may hold, since a call broke off

    @override
    async def put(self, version: ProposalVersion) -> Adapter:
        await self._remove_leftovers()
        adapter = Adapter(next(self._ids), version.digest, version.path)
        self._leftovers.append(adapter)
        await self._weights.add_adapter(adapter)
        self._leftovers.remove(adapter)
        return adapter

    @override
    async def drop(self, adapter: Adapter | None) -> None:
        if adapter is not None:
            self._leftovers.append(adapter)
            await self._remove_leftovers()

    async def _remove_leftovers(self) -> None:
        while self._leftovers:
            await self._weights.remove_adapter(self._leftovers[0])  # after all earlier calls
            del self._leftovers[0]


class WeightsByFile(Delivery):
    """Whole models, one after the other: each replaces the weights of the one before."""

    capacity = 1

    def __init__(self, weights: EngineWeights) -> None:
        self._weights = weights

    @override
    async def put(self, version: ProposalVersion) -> None:
        await self._weights.load(version.path)

    @override
    async def drop(self, adapter: Adapter | None) -> None:
        """Do nothing: the next version's weights replace these."""


class MergedAdapters(WeightsByFile):
    """Adapters, one after the other, each added to the base model's weights: the engine computes without adapters."""

    @override
    async def put(self, version: ProposalVersion) -> None:
        lost = await self._weights.load_merged(version.path)
        _LOG.info("version %d is merged; rounding takes %.2g of its adapter's change", version.version, lost)


class WeightsByTransfer(WeightsByFile):
    """Whole models, one after the other, sent by the learner's weight server; read from files where that fails.

    The engine must have been started to receive. `time_limit` (seconds) is that of `fetch`.
    """

    reads_files = False

    def __init__(self, sampler: str, weights: EngineWeights, time_limit: float) -> None:
        super().__init__(weights)
        self._sampler = sampler
        self._time_limit = time_limit
        self._received: str | None = None  # digest of the version that the engine has received and not yet loaded

    @override
    async def fetch(self, version: ProposalVersion) -> bool:
        if self._received == version.digest:  # for a request that was cancelled then
            return True
        self._received = None
        try:
            if version.server is None:
                raise NotReceivedError("it was published without a weight server")
            limit = _RECEIVING * self._time_limit
            await self._weights.receive(WeightSource(version.server, version.version, version.digest, limit))
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

    @override
    async def put(self, version: ProposalVersion) -> None:
        if self._received == version.digest:
            self._received = None
            await self._weights.load_received()
        else:
            await super().put(version)
