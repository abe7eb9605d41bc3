"""What a delivery by transfer does with an engine that receives, or does not."""

import asyncio
import logging
from pathlib import Path
from typing import cast

import pytest

from brain_align.common.policies import PolicyRegistry, ProposalVersion
from brain_align.sampler.weights.delivery import WeightsByTransfer
from brain_align.sampler.weights.engine_weights import EngineWeights
from brain_align.sampler.weights.receiving import NotReceivedError, WeightSource
from tests.unit.factories import PROBE


class ReceivingWeights:
    """Remembers what it was asked, and refuses to receive if it is told so."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.refusal: str | None = None

    async def receive(self, source: WeightSource) -> None:
        self.asked.append(source)
        if self.refusal is not None:
            raise NotReceivedError(self.refusal)

    async def load_received(self) -> None:
        self.asked.append("received")

    async def load(self, directory: Path) -> None:
        self.asked.append(directory)


class World:
    def __init__(self, root: Path) -> None:
        self.registry = PolicyRegistry(root)
        self.engine = ReceivingWeights()
        self.fetched: list[bool] = []
        self.delivery = WeightsByTransfer("sampler-3", cast(EngineWeights, self.engine), time_limit=60)

    def published(self, version: int, server: str | None = "10.0.0.1:7000") -> ProposalVersion:
        return self.registry.publish(version, 0, lambda place: _write(place, version), PROBE, server)

    def bring(self, *versions: ProposalVersion) -> None:
        async def scene() -> None:
            for version in versions:
                self.fetched.append(await self.delivery.fetch(version))
                await self.delivery.put(version)

        asyncio.run(scene())


def _write(directory: Path, version: int) -> None:
    (directory / "weights").write_text(f"weights {version}")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_version_that_was_received_is_loaded_and_its_files_are_left_alone(world: World) -> None:
    version = world.published(1)
    (version.path / "weights").unlink()
    world.bring(version)
    assert world.fetched == [True]
    assert world.engine.asked == [WeightSource("10.0.0.1:7000", 1, version.digest, 30.0), "received"]


@pytest.mark.parametrize(
    ("server", "why"), [("10.0.0.1:7000", "it has left"), (None, "it was published without a weight server")]
)
def test_otherwise_it_is_loaded_from_its_files_and_the_log_says_who_when_and_why(
    world: World, caplog: pytest.LogCaptureFixture, server: str | None, why: str
) -> None:
    world.engine.refusal = "it has left"
    version = world.published(2, server)
    with caplog.at_level(logging.WARNING, "brain_align.sampler"):
        world.bring(version)
    assert world.fetched == [False]
    assert world.engine.asked[-1] == version.path
    assert caplog.messages == [
        f"sampler-3 takes proposal version 2 from its files, since phase `fetch` of its transfer failed "
        f"(server: {server or 'none'}): {why}"
    ]


def test_what_was_received_for_a_lease_that_was_given_up_is_not_asked_for_again(world: World) -> None:
    version = world.published(3)

    async def scene() -> None:
        assert await world.delivery.fetch(version)
        assert await world.delivery.fetch(version)
        await world.delivery.put(version)

    asyncio.run(scene())
    assert [type(asked) for asked in world.engine.asked] == [WeightSource, str]


def test_what_was_received_is_not_taken_for_another_version(world: World) -> None:
    first, second = world.published(4), world.published(5)

    async def scene() -> None:
        await world.delivery.fetch(first)  # whose lease was given up then
        world.engine.refusal = "it has left"
        await world.delivery.fetch(second)
        await world.delivery.put(second)

    asyncio.run(scene())
    assert world.engine.asked[-1] == second.path
