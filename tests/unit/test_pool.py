import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import DeliveryError, PipelineError, UserError
from deploy.actor import ActorLostError, Spawn
from deploy.pool import MAX_ATTEMPTS, Pool, PoolSettings
from deploy.replica import State
from deploy.run_directory import RunDirectory
from sampler.reports import Pulse
from tests.stand_ins import LocalActor

QUICK = PoolSettings(start=5, backoff=0.001)


class Worker(LocalActor):
    """Does what it is told, one behaviour a call; the behaviours are shared by all workers of a test."""

    def __init__(self, name: str, behaviours: list[Any]) -> None:
        super().__init__()
        self.name, self.behaviours = name, behaviours

    async def do(self) -> str:
        behaviour = self.behaviours.pop(0) if self.behaviours else "answer"
        if isinstance(behaviour, Exception):
            raise behaviour
        if behaviour == "die":
            self.kill()
        await self.work(60 if behaviour == "hang" else 0.01)
        return self.name


def pool(folder: Path, behaviours: list[Any], replicas: int = 1, settings: PoolSettings = QUICK) -> Pool:
    return Pool("worker", replicas, lambda name, _log: Worker(name, behaviours), RunDirectory(folder), settings)


def run(subject: Pool, what: Callable[[], Awaitable[Any]]) -> Any:
    async def with_pool() -> Any:
        await subject.start()
        return await what()

    return asyncio.run(asyncio.wait_for(with_pool(), 20))


def test_a_replica_with_a_fault_of_its_own_is_restarted_and_the_call_is_not_blamed(tmp_path: Path) -> None:
    subject = pool(tmp_path, [DeliveryError("out of memory")])

    async def one_call() -> None:
        async with subject.slot() as slot:
            with pytest.raises(ActorLostError, match=r"out of memory \(worker-0; its log") as lost:
                await slot.call("do", timeout=5)
        assert lost.value.sent_away
        assert await subject.call("do", timeout=5) == "worker-0"

    run(subject, one_call)
    assert subject.replicas["worker-0"].losses == 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("trouble", ["die", "hang"])
def test_a_lost_or_hung_replica_is_restarted_and_the_call_repeated(tmp_path: Path, trouble: str) -> None:
    subject = pool(tmp_path, [trouble])
    assert run(subject, lambda: subject.call("do", timeout=0.2)) == "worker-0"
    assert subject.replicas["worker-0"].losses == 1


def test_a_call_that_loses_its_replica_each_time_fails_with_the_name_and_the_log(tmp_path: Path) -> None:
    subject = pool(tmp_path, ["hang"] * MAX_ATTEMPTS)
    with pytest.raises(PipelineError, match=r"3 times: worker-0 gave no answer .*worker-0\.log") as stopped:
        run(subject, lambda: subject.call("do", timeout=0.05))
    assert not isinstance(stopped.value, ActorLostError)


def test_what_a_method_raises_is_named_and_does_not_cost_the_replica(tmp_path: Path) -> None:
    subject = pool(tmp_path, [UserError("the prompt is empty"), PipelineError("no memory")])
    with pytest.raises(UserError, match=r"the prompt is empty \(worker-0; its log is"):
        run(subject, lambda: subject.call("do", timeout=1))
    assert subject.replicas["worker-0"].losses == 0


def spawn_failing(error: Exception, fails: Callable[[str], bool]) -> Spawn:
    class Failing(Worker):
        async def ready(self) -> None:
            if fails(self.name):
                raise error

    return lambda name, _log: Failing(name, [])


def test_a_start_that_the_user_must_put_right_ends_everything(tmp_path: Path) -> None:
    spawn = spawn_failing(UserError("no such model"), lambda _name: True)
    subject = Pool("worker", 2, spawn, RunDirectory(tmp_path), QUICK)
    with pytest.raises(UserError, match="no such model"):
        run(subject, lambda: asyncio.sleep(0))


def test_a_replica_that_never_comes_up_is_given_up_while_another_serves(tmp_path: Path) -> None:
    spawn = spawn_failing(PipelineError("bad node"), lambda name: name == "worker-1")
    subject = Pool("worker", 1, spawn, RunDirectory(tmp_path), QUICK)

    async def grow() -> str:
        subject.scale(2)
        await until(lambda: subject.replicas["worker-1"].state is State.GONE)
        return await subject.call("do", timeout=1)

    assert run(subject, grow) == "worker-0"
    assert subject.target == 1 and "bad node" in str(subject.replicas["worker-1"].trouble)


def test_added_replicas_serve_and_leaving_ones_finish_first(tmp_path: Path) -> None:
    subject = pool(tmp_path, [])

    async def grow_and_shrink() -> None:
        subject.scale(3)
        await until(lambda: subject.ready == 3)
        slots = [await subject.acquire() for _ in range(3)]
        assert {slot.replica.name for slot in slots} == {"worker-0", "worker-1", "worker-2"}
        calls = [asyncio.create_task(slot.call("do", timeout=1)) for slot in slots]
        subject.scale(1)
        assert subject.target == 1 and len(subject.replicas) == 3
        assert set(await asyncio.gather(*calls)) == {"worker-0", "worker-1", "worker-2"}
        for slot in slots:
            slot.release()
        await until(lambda: len(subject.replicas) == 1)
        assert await subject.call("do", timeout=1) == next(iter(subject.replicas))

    run(subject, grow_and_shrink)


def test_whoever_wants_a_replica_alone_gets_it_when_it_is_idle(tmp_path: Path) -> None:
    subject = pool(tmp_path, [], settings=PoolSettings(start=5, slots=2))

    async def compete() -> None:
        shared = await subject.acquire()
        alone = asyncio.create_task(subject.acquire(alone=True))
        await asyncio.sleep(0.01)
        other = asyncio.create_task(subject.acquire())
        await asyncio.sleep(0.01)
        assert not alone.done() and not other.done()  # the replica is kept free for the first
        shared.release()
        slot = await alone
        await asyncio.sleep(0.01)
        assert not other.done()
        slot.release()
        (await other).release()

    run(subject, compete)


def test_giving_up_waiting_takes_no_slot(tmp_path: Path) -> None:
    subject = pool(tmp_path, [])

    async def give_up() -> str:
        slot = await subject.acquire()
        waiting = [asyncio.create_task(subject.acquire(alone=alone)) for alone in (False, True)]
        await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        slot.release()
        return await subject.call("do", timeout=1)

    assert run(subject, give_up) == "worker-0"


def test_a_replica_without_progress_is_taken_for_hung(tmp_path: Path) -> None:
    idle = [100.0]

    class Hung(Worker):
        async def pulse(self) -> Pulse:
            return Pulse(3, 0, 0, 0, idle[0])

    settings = PoolSettings(start=5, silence=0.1, backoff=0.001)
    subject = Pool("worker", 1, lambda name, _log: Hung(name, ["hang"]), RunDirectory(tmp_path), settings)

    async def wait() -> str:
        async with subject.slot() as slot:
            with pytest.raises(ActorLostError, match="has made no progress for 100 s"):
                await slot.call("do", timeout=60)
        idle[0] = 0.0
        assert "has made no progress for 100 s" in str(subject.replicas["worker-0"].trouble)
        await until(lambda: subject.ready == 1)
        return "restarted"

    assert run(subject, wait) == "restarted"
    assert subject.replicas["worker-0"].losses == 1


def test_replicas_lost_in_a_row_without_any_answer_end_the_run(tmp_path: Path) -> None:
    subject = pool(tmp_path, ["die"] * 100, replicas=2)

    async def insist() -> None:
        while True:
            async with subject.slot() as slot:
                with pytest.raises(ActorLostError):
                    await slot.call("do", timeout=1)

    with pytest.raises(PipelineError, match="15 replicas of worker were lost in a row"):
        run(subject, insist)


def test_one_more_is_one_more(tmp_path: Path) -> None:
    subject = pool(tmp_path, [], replicas=2)

    async def grow() -> set[str]:
        subject.scale(3)
        await until(lambda: subject.ready == 3)
        return set(subject.replicas)

    assert run(subject, grow) == {"worker-0", "worker-1", "worker-2"}


def test_a_pool_that_was_ended_starts_nothing_again(tmp_path: Path) -> None:
    settings = PoolSettings(start=5, silence=0.02, backoff=0.001)
    starts: list[str] = []

    def spawn(name: str, _log: str) -> Worker:
        starts.append(name)
        return Worker(name, [])

    subject = Pool("worker", 1, spawn, RunDirectory(tmp_path), settings)

    async def end() -> None:
        subject.kill()
        await asyncio.sleep(0.1)

    run(subject, end)
    assert starts == ["worker-0"]
