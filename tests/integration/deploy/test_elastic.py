"""The control plane with services in processes of their own, under Ray: they come, go, die, hang and fail."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import ray

from brain_align.common.requests import Prompt, SampleRequest
from brain_align.common.schemas import PRIOR
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.actors.replica import Slot
from brain_align.deploy.monitor.status import Status, read_status
from brain_align.deploy.run.directory import RunDirectory
from tests.integration.deploy.pipeline_runs import ROOT, environment
from tests.ray_stand_ins import HANG, HURRY, POISON, SleepingSampler, SleepingScorer, spawning
from tests.stand_ins import LocalLearner, Simulation, reward_and_prior

pytestmark = pytest.mark.timeout(300)

ROUNDS, PROMPTS = 2, 24
ALGORITHM = {"rounds": ROUNDS, "prompts_per_round": PROMPTS, "updates_per_round": 6, "batch_prompts": 4}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def simulation(
    root: Path,
    *,
    staleness: int = 1,
    samplers: int = 2,
    seconds: float = 0.05,
    trouble: dict[str, str] | None = None,
    stall_timeout: float = 60,
    scorers: dict[str, Any] | None = None,
    evaluated: int = 0,
) -> Simulation:
    (root / "pids").mkdir(parents=True, exist_ok=True)
    return Simulation(
        root,
        {**ALGORITHM, "max_staleness": staleness},
        (samplers, spawning(SleepingSampler, str(root / "pids"), seconds, trouble or {})),
        scorers or reward_and_prior(),
        LocalLearner(),
        evaluated=evaluated,
        recipe={"sampler": {"lease_prompts": 6}},
        samplers_settings=PoolSettings(
            start=120, slots=2 if staleness else 1, stall_timeout=stall_timeout, backoff=0.1
        ),
    )


def run(subject: Simulation, *beside: Callable[[Simulation], Coroutine[Any, Any, None]]) -> None:
    async def together() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(subject.run())
            for one in beside:
                tasks.create_task(one(subject))

    try:
        asyncio.run(asyncio.wait_for(together(), 240))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.02)


def kill(folder: Path, name: str) -> str:
    """kill -9 of a process that has said that it is ready; returns its name, of which `name` is the beginning."""
    marker = next(iter(folder.glob(f"{name}*@*")))
    marker.unlink()
    killed, _, pid = marker.name.rpartition("@")
    os.kill(int(pid), signal.SIGKILL)
    return killed


def assert_complete(subject: Simulation, *, left_out: int = 0) -> None:
    """All steps are trained; every prompt has one group, with one value a scorer, but for those left out."""
    store = SampleStore(subject.directory.own_store, "run", read_only=True)
    groups = list(store.group_ids)
    assert len(groups) == len(set(groups))
    assert len(store.steps()) == ROUNDS * 6 and set(subject.trained()) <= set(groups)
    if not left_out:  # else a round's last steps train some groups again, before the last are sampled
        assert len(groups) == ROUNDS * PROMPTS
        assert {facts.name: facts.groups for facts in store.scorers()} == {PRIOR: len(groups), "reward": len(groups)}
    assert len([item for item in subject.work.quarantine if item.purpose == "train"]) == left_out


def test_a_killed_sampler_is_restarted_and_nothing_is_lost_or_sampled_twice(tmp_path: Path) -> None:
    async def murder(subject: Simulation) -> None:
        await until(lambda: subject.tracker.progress().sampled >= 4)
        killed = kill(tmp_path / "pids", "sampler-")  # the other one may still be starting
        await until(lambda: subject.services.samplers.replicas[killed].losses == 1)

    subject = simulation(tmp_path)
    run(subject, murder)
    assert_complete(subject)
    assert sorted(subject.trained()) == sorted(subject.store.group_ids)
    assert len(subject.work.quarantine) == 0


def test_a_hung_sampler_is_noticed_and_restarted(tmp_path: Path) -> None:
    trouble = {"p5": HANG}
    subject = simulation(tmp_path, trouble=trouble, stall_timeout=2)
    run(subject)
    assert_complete(subject, left_out=1)  # it hangs each time: the prompt is left out in the end
    (item,) = subject.work.quarantine
    assert item.prompt_id == "p5" and "made no progress" in item.error + subject.said.getvalue()


def test_a_prompt_that_kills_samplers_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    subject = simulation(tmp_path, trouble={"p5": POISON})
    run(subject)
    assert_complete(subject, left_out=1)
    (item,) = subject.work.quarantine
    assert item.prompt_id == "p5" and "was lost" in item.error


def test_a_group_that_keeps_failing_in_a_scorer_is_left_out_with_its_error(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    faulty = {**reward_and_prior(), "reward": (1, spawning(SleepingScorer, str(pids), 0.01, "p7", name="reward"))}
    subject = simulation(tmp_path, scorers=faulty)
    run(subject)
    (item,) = subject.work.quarantine
    assert (item.service, item.prompt_id) == ("reward", "p7") and "cannot score this" in item.error
    assert_complete(subject, left_out=1)
    assert item.group_id not in subject.trained()
    assert subject.store.has_group(item.group_id) and not subject.store.has_score(item.group_id, "reward")


def test_two_scorers_of_one_store_one_killed_every_group_has_one_value_of_each(tmp_path: Path) -> None:
    async def murder(subject: Simulation) -> None:
        await until(lambda: subject.tracker.progress().scored >= 4)
        kill(tmp_path / "pids", "reward")

    pids = str(tmp_path / "pids")
    pair = {name: (1, spawning(SleepingScorer, pids, 0.1, "nobody", name=name)) for name in (PRIOR, "reward")}
    subject = simulation(tmp_path, scorers=pair)
    run(subject, murder)
    assert_complete(subject)
    assert subject.services.scorers["reward"].replicas["scorer-reward-0"].losses == 1


def brain(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "brain_align.deploy.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment())


def test_samplers_and_scorers_are_added_and_removed_from_another_terminal(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    async def operate(subject: Simulation) -> None:
        await until(lambda: subject.tracker.progress().sampled >= 2)
        seen["up"] = await asyncio.to_thread(
            brain, "scale", str(tmp_path), "samplers=3", "scorers.reward=2", "--timeout", "60"
        )
        assert seen["up"].returncode == 0, seen["up"].stderr
        pools = subject.services.pools
        await until(lambda: pools["samplers"].ready == 3 and pools["scorers.reward"].ready == 2)
        await until(lambda: read_status(subject.directory).services["samplers"].ready == 3)  # written every second
        seen["status"] = await asyncio.to_thread(brain, "status", str(tmp_path), "--json")
        seen["none"] = await asyncio.to_thread(brain, "scale", str(tmp_path), "samplers=0")
        seen["unknown"] = await asyncio.to_thread(brain, "scale", str(tmp_path), "scorers.nobody=2")
        seen["down"] = await asyncio.to_thread(brain, "scale", str(tmp_path), "samplers=1")
        await until(lambda: pools["samplers"].target == 1)
        (tmp_path / "pids" / HURRY).touch()
        await until(lambda: len(pools["samplers"].replicas) == 1)

    subject = simulation(tmp_path, samplers=2, seconds=5)
    run(subject, operate)
    assert_complete(subject)
    assert "samplers: 2 -> 3" in seen["up"].stdout and "scorers.reward: 1 -> 2" in seen["up"].stdout
    status = Status.model_validate_json(seen["status"].stdout)
    assert status.state == "running" and status.services["samplers"].ready == 3
    assert seen["none"].returncode == 2 and "out of bounds" in seen["none"].stderr
    assert seen["unknown"].returncode == 2 and "no scorers.nobody" in seen["unknown"].stderr
    assert seen["down"].returncode == 0
    assert [change.after for change in read_status(subject.directory).scaling] == [3, 2, 1]
    assert brain("scale", str(tmp_path), "samplers=2").returncode == 2  # it has ended


def test_a_lease_that_nobody_wants_any_more_ends_in_its_sampler(tmp_path: Path) -> None:
    """Another run may share the sampler, which goes on."""
    prompts = tuple(Prompt(f"p{number}", "text", (1,), None) for number in range(2))
    request = SampleRequest("train-0000-0000", "train", 0, 0, 2, 1, ("g0", "g1"), prompts, "policies")

    async def sample(slot: Slot) -> None:
        async with aclosing(slot.stream("generate", request, timeout=60)) as items:
            async for _ in items:
                pass

    async def give_up() -> int:
        spawn = spawning(SleepingSampler, str(tmp_path), 0.01, {"p1": HANG})
        pool = Pool("sampler", 1, spawn, RunDirectory(tmp_path).log, PoolSettings(start=120, slots=2))
        await pool.start()
        async with pool.slot() as slot:
            async with aclosing(slot.stream("generate", request, timeout=60)) as items:
                await anext(items)
            cancelled = asyncio.create_task(sample(slot))
            await asyncio.sleep(0.5)
            cancelled.cancel()
            await asyncio.wait([cancelled])
        while (await pool.call("heartbeat", timeout=60)).running:
            await asyncio.sleep(0.1)
        losses = pool.replicas["sampler-0"].losses
        pool.kill()
        return losses

    assert asyncio.run(asyncio.wait_for(give_up(), 120)) == 0
