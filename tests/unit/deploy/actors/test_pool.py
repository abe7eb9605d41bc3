import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from brain_align.common.errors import DeliveryError, PipelineError, ScorerAwayError, UserError
from brain_align.deploy.actors import pool as pools
from brain_align.deploy.actors.actor import ActorLostError, LostError, Spawn
from brain_align.deploy.actors.pool import MAX_ATTEMPTS, MAX_LOSSES, Pool, PoolSettings
from brain_align.deploy.actors.replica import State
from brain_align.deploy.run.directory import RunDirectory
from brain_align.sampler.reports import Heartbeat
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
    return Pool("worker", replicas, lambda name, _log: Worker(name, behaviours), RunDirectory(folder).log, settings)


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
    with pytest.raises(UserError, match=r"the prompt is empty \(worker-0; its log"):
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
    subject = Pool("worker", 2, spawn, RunDirectory(tmp_path).log, QUICK)
    with pytest.raises(UserError, match="no such model"):
        run(subject, lambda: asyncio.sleep(0))


def test_a_replica_that_never_comes_up_is_given_up_while_another_serves(tmp_path: Path) -> None:
    spawn = spawn_failing(PipelineError("bad node"), lambda name: name == "worker-1")
    subject = Pool("worker", 1, spawn, RunDirectory(tmp_path).log, QUICK)

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
        async def heartbeat(self) -> Heartbeat:
            return Heartbeat(3, 0, 0, 0, idle[0])

    settings = PoolSettings(start=5, stall_timeout=0.1, backoff=0.001)
    subject = Pool("worker", 1, lambda name, _log: Hung(name, ["hang"]), RunDirectory(tmp_path).log, settings)

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


def test_replicas_that_are_all_lost_again_and_again_without_any_answer_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brain_align.deploy.actors.pool._LONGEST_BACKOFF", 0.001)
    subject = pool(tmp_path, ["die"] * 100, replicas=2)

    async def insist() -> None:
        while True:
            async with subject.slot() as slot:
                with pytest.raises(ActorLostError):
                    await slot.call("do", timeout=1)

    with pytest.raises(PipelineError, match="Every worker was lost 15 times in a row"):
        run(subject, insist)


def test_many_replicas_lost_at_once_are_all_started_again(tmp_path: Path) -> None:
    count = 2 * MAX_LOSSES
    subject = pool(tmp_path, [], replicas=count)

    async def lose_all() -> str:
        await until(lambda: subject.ready == count)
        for replica in subject.replicas.values():
            replica.actor.kill()
            replica.lost(ActorLostError("its machine was taken away"))
        await until(lambda: subject.ready == count)
        return await subject.call("do", timeout=1)

    assert run(subject, lose_all) in subject.replicas


class Streaming(Worker):
    """Gives two items, far apart, and notes when nobody wants the second."""

    closed = False

    async def items(self) -> AsyncGenerator[int]:
        try:
            yield 1
            await self.work(60)
            yield 2
        finally:
            Streaming.closed = True


def test_an_item_shows_at_once_that_a_replica_works(tmp_path: Path) -> None:
    subject = Pool("worker", 1, lambda name, _log: Streaming(name, []), RunDirectory(tmp_path).log, QUICK)

    async def look() -> int:
        async with subject.slot() as slot:
            slot.replica.failures_in_a_row = 3
            async with aclosing(slot.stream("items", timeout=60)) as items:
                await anext(items)
                return slot.replica.failures_in_a_row

    assert run(subject, look) == 0
    assert Streaming.closed  # what nobody wants any more is not made


def test_the_time_that_the_caller_takes_does_not_count_against_a_replica(tmp_path: Path) -> None:
    class Quick(Worker):
        async def items(self) -> AsyncGenerator[int]:
            for number in range(3):
                yield number

    subject = Pool("worker", 1, lambda name, _log: Quick(name, []), RunDirectory(tmp_path).log, QUICK)

    async def take_time() -> list[int]:
        seen = []
        async with subject.slot() as slot, aclosing(slot.stream("items", timeout=0.2)) as items:
            async for item in items:
                seen.append(item)
                await asyncio.sleep(0.15)
        return seen

    assert run(subject, take_time) == [0, 1, 2]


def test_one_that_raises_in_its_first_start_does_not_end_the_run(tmp_path: Path) -> None:
    spawn = spawn_failing(PipelineError("bad node"), lambda name: name == "worker-0")
    subject = Pool("worker", 2, spawn, RunDirectory(tmp_path).log, QUICK)
    assert run(subject, lambda: subject.call("do", timeout=1)) == "worker-1"


def test_where_none_comes_up_the_error_says_why(tmp_path: Path) -> None:
    spawn = spawn_failing(PipelineError("bad node"), lambda _name: True)
    subject = Pool("worker", 2, spawn, RunDirectory(tmp_path).log, QUICK)
    with pytest.raises(PipelineError, match=r"No worker is left; the last was given up after 3 starts: .*bad node"):
        run(subject, lambda: asyncio.sleep(0))


@pytest.mark.parametrize("replaced", [False, True])
def test_one_that_was_given_up_is_tried_again_unless_it_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    monkeypatch.setattr("brain_align.deploy.actors.pool._LONGEST_BACKOFF", 0.05)
    broken = {"worker-1"}
    spawn = spawn_failing(PipelineError("bad node"), lambda name: name in broken)
    subject = Pool("worker", 2, spawn, RunDirectory(tmp_path).log, QUICK)

    async def repair() -> set[str]:
        await until(lambda: subject.count(State.GONE) == 1)
        if replaced:
            subject.scale(2)
        broken.clear()
        await until(lambda: subject.ready == 2 and len(subject.replicas) == 2)
        return set(subject.replicas)

    assert run(subject, repair) == {"worker-0", "worker-2" if replaced else "worker-1"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such option"), "worker-0 could not be looked after: ValueError: no such option"),
        (
            LostError("the cluster refuses"),
            "No worker is left; .*worker-0 was lost in its creation .the cluster refuses",
        ),
    ],
)
def test_an_actor_that_cannot_even_be_created_ends_the_run_with_a_sentence(
    tmp_path: Path, error: Exception, said: str
) -> None:
    def spawn(_name: str, _log: str) -> Worker:
        raise error

    with pytest.raises(PipelineError, match=said):
        run(Pool("worker", 1, spawn, RunDirectory(tmp_path).log, QUICK), lambda: asyncio.sleep(0))


class Homeless(Worker):
    """Finds no room once the test says so."""

    crowded = False

    async def placed(self) -> None:
        await self.work(60 if Homeless.crowded else 0)


@pytest.mark.parametrize("at_first", [True, False])
def test_without_room_for_any_replica_the_run_ends_with_a_sentence(tmp_path: Path, at_first: bool) -> None:
    Homeless.crowded = at_first
    settings = PoolSettings(start=0.1, backoff=0.001)
    subject = Pool("worker", 2, lambda name, _log: Homeless(name, ["die", "die"]), RunDirectory(tmp_path).log, settings)

    async def lose_all() -> None:
        await until(lambda: subject.ready == 2)
        Homeless.crowded = True
        await subject.call("do", timeout=1)

    with pytest.raises(PipelineError, match=r"No worker found room in the cluster within 0.*add nodes"):
        run(subject, lose_all)


def test_a_hung_replica_that_is_to_leave_is_noticed_and_leaves(tmp_path: Path) -> None:
    class Hung(Worker):
        async def heartbeat(self) -> Heartbeat:
            return Heartbeat(3, 0, 0, 0, 100.0 if subject.replicas[self.name].state is State.LEAVING else 0.0)

    settings = PoolSettings(start=5, stall_timeout=0.1, backoff=0.001)
    subject = Pool("worker", 2, lambda name, _log: Hung(name, ["hang"]), RunDirectory(tmp_path).log, settings)

    async def dismiss() -> None:
        await until(lambda: subject.ready == 2)
        slots = [await subject.acquire(), await subject.acquire()]
        slots.pop().release()
        (busy,) = slots
        call = asyncio.create_task(busy.call("do", timeout=60))
        subject._dismiss(busy.replica)
        with pytest.raises(ActorLostError):
            await call
        busy.release()
        await until(lambda: len(subject.replicas) == 1)

    run(subject, dismiss)


def test_idle_replicas_leave_first(tmp_path: Path) -> None:
    subject = pool(tmp_path, [], replicas=3)

    async def shrink() -> None:
        await until(lambda: subject.ready == 3)
        slots = [await subject.acquire() for _ in range(3)]
        idle = slots.pop(1)
        idle.release()
        subject.scale(2)
        assert idle.replica.state is State.LEAVING
        assert all(slot.replica.state is State.READY for slot in slots)

    run(subject, shrink)


def test_one_more_is_one_more(tmp_path: Path) -> None:
    subject = pool(tmp_path, [], replicas=2)

    async def grow() -> set[str]:
        subject.scale(3)
        await until(lambda: subject.ready == 3)
        return set(subject.replicas)

    assert run(subject, grow) == {"worker-0", "worker-1", "worker-2"}


def test_a_pool_that_was_ended_starts_nothing_again(tmp_path: Path) -> None:
    settings = PoolSettings(start=5, stall_timeout=0.02, backoff=0.001)
    starts: list[str] = []

    def spawn(name: str, _log: str) -> Worker:
        starts.append(name)
        return Worker(name, [])

    subject = Pool("worker", 1, spawn, RunDirectory(tmp_path).log, settings)

    async def end() -> None:
        subject.kill()
        await asyncio.sleep(0.1)

    run(subject, end)
    assert starts == ["worker-0"]


def test_each_loss_and_each_start_that_failed_is_told(tmp_path: Path) -> None:
    subject = pool(tmp_path, ["die", "die"])
    told: list[str] = []
    subject.tell = told.append
    assert run(subject, lambda: subject.call("do", timeout=1)) == "worker-0"
    log = tmp_path / "logs" / "worker-0.log"
    assert (
        told == [f"worker-0 was lost in 'do' (killed); its log, {log}, is not visible here. It is started again."] * 2
    )


def test_the_last_error_of_its_log_is_told_but_not_that_of_an_earlier_start(tmp_path: Path) -> None:
    log = RunDirectory(tmp_path).log("worker-0")
    log.parent.mkdir(parents=True)
    log.write_text("ValueError: of another start\n")

    class Writing(Worker):
        async def do(self) -> str:
            with open(log, "a") as file:
                file.write("KeyError: 'size'\n")
            return await super().do()

    behaviours = ["die"]
    subject = Pool("worker", 1, lambda name, _log: Writing(name, behaviours), RunDirectory(tmp_path).log, QUICK)
    told: list[str] = []
    subject.tell = told.append
    run(subject, lambda: subject.call("do", timeout=1))
    (said,) = told
    assert f"(killed); the last error in its log: KeyError: 'size'; its log is {log}." in said


def test_who_waits_for_room_says_soon_what_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "WAITS_SILENTLY", 0.01)

    class Waiting(Worker):
        async def placed(self) -> None:
            await asyncio.sleep(0.1)

    settings = PoolSettings(start=5, backoff=0.001)
    make = RunDirectory(tmp_path).log
    subject = Pool("worker", 2, lambda name, _log: Waiting(name, []), make, settings, lambda: "it asks for 5 GPU")
    told: list[str] = []
    subject.tell = told.append
    run(subject, lambda: until(lambda: subject.ready == 2))
    assert told == ["worker-0 waits for room in the cluster: it asks for 5 GPU."]
    assert [replica.trouble for replica in subject.replicas.values()] == [None, None]


class OfAService(Worker):
    """Comes up only while its service is there."""

    down = False

    async def ready(self) -> None:
        if self.down:
            raise ScorerAwayError("connection refused")


@pytest.mark.parametrize("outage", [20.0, 0.05])
def test_a_replica_that_is_lost_in_an_outage_comes_up_after_it_unless_that_takes_too_long(
    tmp_path: Path, outage: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_LONGEST_BACKOFF", 0.002)
    settings = PoolSettings(start=5, backoff=0.001, outage=outage)
    subject = Pool("worker", 1, lambda name, _log: OfAService(name, ["die"]), RunDirectory(tmp_path).log, settings)
    told: list[str] = []

    def tell(what: str) -> None:
        told.append(what)
        if len(told) == 2 * MAX_LOSSES and outage > 1:
            monkeypatch.setattr(OfAService, "down", False)

    subject.tell = tell

    async def lose() -> None:
        monkeypatch.setattr(OfAService, "down", True)
        async with subject.slot() as slot:
            with pytest.raises(ActorLostError):
                await slot.call("do", timeout=1)
        (await subject.acquire()).release()

    if outage > 1:
        run(subject, lose)
        assert len(told) >= 2 * MAX_LOSSES
    else:
        with pytest.raises(PipelineError, match=r"No worker has come up for 0.05 s \(timeouts.outage\): connect"):
            run(subject, lose)
