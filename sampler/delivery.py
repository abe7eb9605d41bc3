"""How a published version's weights come into the engine."""

from itertools import count
from typing import Protocol

from common.policies import ProposalVersion
from sampler.engine import Engine
from sampler.engine_data import Adapter


class Delivery(Protocol):
    """One way of delivering weights.

    Attributes:
        capacity: versions that the engine can hold at once.
    """

    capacity: int

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


class AdapterSwap:
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


class WeightsByFile:
    """Whole models, one after the other: each replaces the weights of the one before."""

    def __init__(self, engine: Engine) -> None:
        self.capacity = 1
        self._engine = engine

    async def put(self, version: ProposalVersion) -> None:
        """See `Delivery`."""
        await self._engine.load_weights(version.path)

    async def drop(self, adapter: Adapter | None) -> None:
        """See `Delivery`; the next version's weights take their place."""
