"""Which versions a sampler holds and who waits for whom, on an engine that only remembers what it was asked."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from brain_align.common.errors import DeliveryError, EngineLostError, EngineUnfitError, UserError
from brain_align.common.policies import PolicyRegistry
from brain_align.sampler.engine.data import Adapter
from brain_align.sampler.engine.engine import Engine
from brain_align.sampler.weights.delivery import Delivery
from brain_align.sampler.weights.versions import Versions
from tests.unit.factories import PROBE


class RecordingDelivery(Delivery):
    """Holds whatever it is given; refuses versions and takes long where it is told to."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.reads_files = True
        self.fetches = True
        self.fetched: list[str] = []
        self.held: list[str] = []
        self.refused: set[str] = set()
        self.seconds = 0.0
        self.error: Exception | None = None

    async def fetch(self, version):
        self.fetched.append(version.path.name)
        return self.fetches

    async def put(self, version):
        await asyncio.sleep(self.seconds)
        name = version.path.name
        if self.error is not None:
            raise self.error
        if name in self.refused:
            raise UserError("it is not one of ours.")
        assert len(self.held) < self.capacity
        self.held.append(name)
        return Adapter(len(self.held), name, version.path)

    async def drop(self, adapter):
        self.held.remove(adapter.digest)


class ProbedEngine:
    """Gives every probe the learner's log-probabilities, but for an error."""

    error = 0.0
    seconds = 0.0

    async def continuation_logprobs(self, prompt: list[int], continuation: list[int], adapter: Adapter) -> list[float]:
        await asyncio.sleep(self.seconds)
        assert (prompt, continuation) == ([1, 2], [3, 4])
        return [-1.0 + self.error, -2.0 - self.error]


class World:
    def __init__(self, root: Path, capacity: int = 2, time_limit: float = 5.0) -> None:
        self.registry = PolicyRegistry(root)
        for version in range(4):
            self.registry.publish(version, version, writer(f"weights {version}"), PROBE)
        self.delivery = RecordingDelivery(capacity)
        self.engine = ProbedEngine()
        self.versions = Versions("sampler-3", cast(Engine, self.engine), self.delivery, "float32", time_limit)

    def use(self, version: int, *, alone: bool = False):
        return self.versions.use(str(self.registry.root), version, alone=alone)

    async def lease(self, version: int, done: asyncio.Event, log: list[str], *, alone: bool = False) -> None:
        async with self.use(version, alone=alone):
            log.append(f"begin {version}")
            await done.wait()
            log.append(f"end {version}")


def writer(content: str) -> Callable[[Path], Any]:
    return lambda directory: (directory / "weights").write_text(content)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def settle(world: World) -> None:
    """Let everybody go as far as they can; verification reads files in a thread, which may take its time."""
    for _ in range(10):
        await asyncio.sleep(0.002)
        while world.versions.phases:
            await asyncio.sleep(0.002)


def run(scene: Awaitable[None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scene, 20)

    asyncio.run(limited())


def test_the_longest_unused_version_makes_room_and_one_in_use_stays(world: World) -> None:
    async def scene() -> None:
        async with world.use(0):
            async with world.use(1):
                pass
            async with world.use(2):
                assert world.delivery.held == ["v000000", "v000002"]
        async with world.use(2):
            pass
        async with world.use(3):
            assert world.delivery.held == ["v000002", "v000003"]

    run(scene())


def test_equal_files_are_one_version_whichever_run_published_them(world: World, tmp_path: Path) -> None:
    async def scene() -> None:
        other = PolicyRegistry(tmp_path / "other")
        other.publish(7, 0, writer("weights 1"), PROBE)
        async with world.use(1), world.versions.use(str(other.root), 7, alone=False) as used:
            assert len(world.delivery.held) == 1
            assert used.proposal.version == 7  # as its own run calls it

    run(scene())


def test_whole_models_drain_and_who_came_first_goes_first(tmp_path: Path) -> None:
    world = World(tmp_path, capacity=1)

    async def scene() -> None:
        log: list[str] = []
        first, second = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for version, done in ((0, first), (0, first), (1, second), (0, second)):
                tasks.create_task(world.lease(version, done, log))
                await settle(world)
            assert log == ["begin 0", "begin 0"]  # version 1 waits, and the later lease of 0 behind it
            first.set()
            await settle(world)
            assert log[2:] == ["end 0", "end 0", "begin 1"]
            second.set()
        assert log[5:] == ["end 1", "begin 0", "end 0"]

    run(scene())


def test_a_lease_that_must_be_alone_waits_for_the_others_and_they_for_it(world: World) -> None:
    async def scene() -> None:
        log: list[str] = []
        others, alone = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(world.lease(0, others, log))
            await settle(world)
            tasks.create_task(world.lease(1, alone, log, alone=True))
            await settle(world)
            tasks.create_task(world.lease(0, others, log))
            await settle(world)
            assert log == ["begin 0"]
            others.set()
            await settle(world)
            assert log == ["begin 0", "end 0", "begin 1"]
            alone.set()
        assert log[3:] == ["end 1", "begin 0", "end 0"]

    run(scene())


def test_what_cannot_be_loaded_is_refused_and_named_and_the_others_stay(world: World) -> None:
    async def scene() -> None:
        async with world.use(0):
            pass
        world.delivery.refused = {"v000001"}
        why = r"sampler-3 refuses proposal version 1 in phase `load` \(it keeps: 0\): it is not one of ours"
        with pytest.raises(UserError, match=why):
            async with world.use(1):
                pass
        assert world.delivery.held == ["v000000"]
        world.delivery.refused = set()
        async with world.use(1):  # nothing of it stuck
            pass

    run(scene())


@pytest.mark.parametrize(("error", "found"), [(0.002, "-3"), (float("nan"), "nan")])
def test_a_version_whose_probe_disagrees_is_dropped(world: World, error: float, found: str) -> None:
    async def scene() -> None:
        world.engine.error = error
        with pytest.raises(UserError, match=rf"phase `probe` .*{found} nats, the learner gave it -3 \("):
            async with world.use(1):
                pass
        assert world.delivery.held == []
        world.engine.error = 0.0005
        async with world.use(1) as used:
            assert used.gap == pytest.approx(0.0005)

    run(scene())


def test_a_phase_that_takes_too_long_ends_with_who_what_and_when(tmp_path: Path) -> None:
    world = World(tmp_path, time_limit=0.5)
    world.delivery.seconds = 5

    async def scene() -> None:
        with pytest.raises(DeliveryError, match=r"sampler-3 .* phase `load` of proposal version 2 within 0\.5 s"):
            async with world.use(2):
                pass

    run(scene())


def test_a_lease_that_is_cancelled_while_its_version_is_probed_leaves_no_version_behind(world: World) -> None:
    async def scene() -> None:
        world.engine.seconds = 60
        under_way = asyncio.create_task(world.lease(1, asyncio.Event(), []))
        while not world.delivery.held:
            await asyncio.sleep(0.002)
        under_way.cancel()
        await asyncio.gather(under_way, return_exceptions=True)
        assert world.delivery.held == []
        world.engine.seconds = 0
        async with world.use(1):
            assert world.delivery.held == ["v000001"]

    run(scene())


def test_a_version_that_is_seen_late_is_waited_for(world: World) -> None:
    async def scene() -> None:
        done = asyncio.Event()
        done.set()
        late = asyncio.create_task(world.lease(5, done, []))
        await asyncio.sleep(0.05)
        world.registry.publish(5, 5, writer("late"), PROBE)
        await late

    run(scene())


def test_a_version_that_is_not_there_is_refused_in_time(tmp_path: Path) -> None:
    world = World(tmp_path, time_limit=1.5)

    async def scene() -> None:
        with pytest.raises(UserError, match=r"phase `verify` .* version 8 .* is not complete"):
            async with world.use(8):
                pass

    run(scene())


def test_the_files_of_a_version_that_made_room_are_verified_again(tmp_path: Path) -> None:
    world = World(tmp_path, capacity=1)

    async def scene() -> None:
        for version in (0, 1):
            async with world.use(version):
                pass
        (world.registry.path(0) / "weights").write_text("tampered")
        with pytest.raises(UserError, match=r"phase `verify` \(it keeps: 1\): .* is damaged"):
            async with world.use(0):
                pass

    run(scene())


def test_a_fault_that_may_pass_is_not_blamed_on_the_version(world: World) -> None:
    async def scene() -> None:
        world.delivery.error = DeliveryError("out of memory")
        with pytest.raises(DeliveryError, match=r"sampler-3 refuses proposal version 1 in phase `load` .*memory"):
            async with world.use(1):
                pass

    run(scene())


def test_an_engine_that_dies_before_it_held_any_version_cannot_run_the_model(world: World) -> None:
    async def scene() -> None:
        world.delivery.error = EngineLostError("the engine has died")
        with pytest.raises(EngineUnfitError, match="has died"):
            await world.use(0, alone=False).__aenter__()
        world.delivery.error = None
        async with world.use(0):
            pass
        world.delivery.error = EngineLostError("the engine has died")
        with pytest.raises(EngineLostError) as later:  # it has worked before: the moment, or a prompt, is to blame
            await world.use(1, alone=False).__aenter__()
        assert not isinstance(later.value, EngineUnfitError)

    run(scene())


def test_who_asks_sees_that_a_phase_is_under_way(world: World) -> None:
    world.delivery.seconds = 0.05

    async def scene() -> None:
        done = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(world.lease(1, done, []))
            while not world.versions.phases:
                await asyncio.sleep(0)
            await settle(world)
            assert world.versions.phases == 0
            assert world.delivery.held == ["v000001"]
            done.set()

    run(scene())


def test_what_is_not_read_from_files_is_fetched_before_anybody_waits_for_room(tmp_path: Path) -> None:
    world = World(tmp_path, capacity=1)
    world.delivery.reads_files = False
    (world.registry.path(1) / "weights").unlink()  # nobody looks

    async def scene() -> None:
        done = asyncio.Event()
        log: list[str] = []
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(world.lease(0, done, log))
            await settle(world)
            tasks.create_task(world.lease(1, done, log))
            await settle(world)
            assert world.delivery.fetched == ["v000000", "v000001"]
            assert world.delivery.held == ["v000000"]
            done.set()
        assert world.delivery.held == ["v000001"]

    run(scene())


def not_fetched(root: Path) -> World:
    world = World(root, capacity=1)
    world.delivery.reads_files = world.delivery.fetches = False
    return world


async def used(world: World, version: int) -> None:
    async with world.use(version):
        pass


def test_the_files_of_what_could_not_be_fetched_are_verified(tmp_path: Path) -> None:
    world = not_fetched(tmp_path)
    (world.registry.path(1) / "weights").write_text("tampered")
    with pytest.raises(UserError, match=r"refuses proposal version 1 in phase `verify`.* is damaged"):
        run(used(world, 1))
    assert world.delivery.held == []


def test_the_files_of_what_could_not_be_fetched_are_waited_for(tmp_path: Path) -> None:
    world = not_fetched(tmp_path)
    weights = world.registry.path(1) / "weights"
    hidden = weights.rename(tmp_path / "not seen yet")

    async def scene() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(used(world, 1))
            while not world.delivery.fetched:
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            hidden.rename(weights)

    run(scene())
    assert world.delivery.held == ["v000001"]
