import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brain_align.common.config.sampling import AutoscaleSection
from brain_align.common.durable import write_file
from brain_align.common.requests import Prompt
from brain_align.common.schemas import PRIOR
from brain_align.common.system.processes import this_process
from brain_align.deploy.cli import main
from brain_align.deploy.commands.scale import parse_replicas
from brain_align.deploy.monitor.requests import Answer, ScaleRequest, answer, ask, take_requests
from brain_align.deploy.monitor.scaling import Load, Scaler
from brain_align.deploy.monitor.status import Liveness, Status, read_status, write_status
from brain_align.deploy.run.directory import RunDirectory
from tests.stand_ins import LocalSampler, Simulation, reward_and_prior

ALGORITHM = {"rounds": 2, "prompts_per_round": 8, "updates_per_round": 2, "batch_prompts": 4, "max_staleness": 1}


def ended(root: Path) -> Simulation:
    simulation = Simulation(root, ALGORITHM, (2, lambda name, _log: LocalSampler(name)), reward_and_prior())
    asyncio.run(asyncio.wait_for(simulation.run(), 30))
    return simulation


def test_status_of_a_run_that_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(tmp_path)
    assert main(["status", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["state"] == "ended"
    assert (said["progress"]["step"], said["progress"]["steps"], said["progress"]["trained"]) == (4, 4, 16)
    assert said["backlog"] == {"leases": 0, "unscored": 0, "ready": 0}
    assert said["services"]["samplers"]["target"] == 2 and set(said["services"]) == {
        "samplers",
        f"scorers.{PRIOR}",
        "scorers.reward",
    }
    assert main(["status", str(tmp_path), "--watch"]) == 0
    assert "4/4" in capsys.readouterr().out


def test_a_run_whose_process_is_gone_is_called_dead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = ended(tmp_path).directory
    process = replace(this_process(), pid=2**22 + 1)
    write_status(directory, read_status(directory).model_copy(update={"state": "running", "process": process}))
    assert main(["status", str(tmp_path)]) == 0
    assert "dead" in (shown := capsys.readouterr().out) and "brain run" in shown
    assert main(["scale", str(tmp_path), "samplers=3"]) == 2
    assert f"No run is alive in {tmp_path}" in capsys.readouterr().err


def test_a_run_whose_process_is_stopped_is_neither_running_nor_dead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = ended(tmp_path).directory
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as sleeper:
        try:
            stat = Path(f"/proc/{sleeper.pid}/stat").read_text(encoding="utf-8")
            process = replace(this_process(), pid=sleeper.pid, started=int(stat.rpartition(")")[2].split()[19]))
            now = {"state": "running", "pid": sleeper.pid, "process": process}
            write_status(directory, read_status(directory).model_copy(update=now))
            sleeper.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
            assert main(["status", str(tmp_path)]) == 0
            assert f"`kill -CONT {sleeper.pid}` on " in capsys.readouterr().out
            sleeper.send_signal(signal.SIGCONT)
            os.waitid(os.P_PID, sleeper.pid, os.WCONTINUED | os.WNOWAIT)
            assert main(["status", str(tmp_path), "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["state"] == "running"
        finally:
            sleeper.kill()


@pytest.mark.parametrize("command", [["status"], ["scale", "samplers=2"]])
def test_a_directory_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([command[0], str(tmp_path), *command[1:]]) == 2
    assert "it is not a run directory" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["samplers", "samplers=", "samplers=many", "samplers=-1", "scorers.reward=1.5"])
def test_an_argument_that_is_no_number_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    assert main(["scale", str(tmp_path), wrong]) == 2
    assert "is not a number of replicas" in capsys.readouterr().err


def alive(root: Path) -> RunDirectory:
    """The directory of a run that this process pretends to be."""
    directory = ended(root).directory
    write_status(directory, read_status(directory).model_copy(update={"state": "running", "process": this_process()}))
    return directory


@pytest.fixture(params=["another machine", "another pid namespace", "an earlier version's status"])
def hidden(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunDirectory, Status]:
    """The directory and status of a run whose process cannot be looked up: host name and number say nothing."""
    monkeypatch.setattr("brain_align.deploy.monitor.status.MOVES_WITHIN", 0.5)
    monkeypatch.setattr("brain_align.deploy.monitor.status._LOOK_EVERY", 0.02)
    here = this_process()
    boot, _, space = here.machine.partition(" ")
    process = {
        "another machine": replace(here, machine=f"0{boot} {space}", pid=2**22 + 1),
        "another pid namespace": replace(here, machine=f"{boot} pid:[1]", pid=2**22 + 1),
        "an earlier version's status": None,
    }[request.param]
    directory = ended(tmp_path).directory
    status = read_status(directory).model_copy(update={"state": "running", "pid": 2**22 + 1, "process": process})
    return directory, status


@pytest.mark.parametrize("skew", [-3600.0, 20.0, 3600.0])
def test_a_run_that_cannot_be_seen_is_alive_while_its_status_moves_whatever_the_clocks_say(
    hidden: tuple[RunDirectory, Status], skew: float
) -> None:
    directory, status = hidden
    done = threading.Event()

    def live() -> None:
        while not done.wait(0.05):
            write_status(directory, status)
            os.utime(directory.status, (time.time() + skew, time.time() + skew))

    write_status(directory, status)
    run = threading.Thread(target=live)
    run.start()
    try:
        assert Liveness(directory).is_alive(status)
    finally:
        done.set()
        run.join()


def test_a_run_that_cannot_be_seen_is_dead_when_its_status_stands_still(
    hidden: tuple[RunDirectory, Status], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, status = hidden
    write_status(directory, status)
    watching = Liveness(directory)
    assert not watching.is_alive(status)
    write_status(directory, status)  # it was slow
    assert watching.is_alive(status) and watching.is_alive(status)
    monkeypatch.setattr("brain_align.deploy.monitor.status.STALE_SECONDS", 0.0)
    assert not watching.is_alive(status)


def test_no_answer_in_time_is_said_and_the_request_withdrawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = alive(tmp_path)
    assert main(["scale", str(tmp_path), "samplers=3", "--timeout", "0.2"]) == 2
    assert "gave no answer within 0.2 s" in capsys.readouterr().err
    assert take_requests(directory) == []


def test_the_answer_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = alive(tmp_path)

    def serve() -> None:
        while not (taken := take_requests(directory)):
            pass
        ((name, request),) = taken
        assert request is not None and request.replicas == {"samplers": 3, "scorers.reward": 2}
        answer(directory, name, Answer(lines=["samplers: 2 -> 3"]))

    server = threading.Thread(target=serve)
    server.start()
    assert main(["scale", str(tmp_path), "samplers=3", "scorers.reward=2"]) == 0
    server.join()
    assert capsys.readouterr().out == "samplers: 2 -> 3\n"


def test_a_request_that_cannot_be_understood_is_answered_too(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    write_file(directory.control / "requests" / "a.json", '{"pause": true}')
    ((name, request),) = take_requests(directory)
    assert (name, request) == ("a.json", None)
    assert "cannot be understood" in str(Scaler({}, None).answer(request).refusal)


class Sized:
    """A pool as far as scaling sees it."""

    elastic = True

    def __init__(self) -> None:
        self.target = 2

    def scale(self, count: int) -> None:
        self.target = count


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        ({"samplers": 0}, "samplers=0 is out of bounds; it must be from 1 to"),
        ({"samplers": 10**9}, "out of bounds"),
        ({"scorers.nobody": 2}, "no scorers.nobody to scale; it has samplers, scorers.reward"),
        ({"scorers.reward": None}, "works for samplers only"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_else_done(asked: dict[str, int | None], refusal: str) -> None:
    pools: dict[str, Any] = {"samplers": Sized(), "scorers.reward": Sized()}
    request = ScaleRequest(replicas={"samplers": 5, **asked} if "samplers" not in asked else asked)
    answered = Scaler(pools, None).answer(request)
    assert refusal in str(answered.refusal)
    assert pools["samplers"].target == 2


def test_a_number_that_the_user_sets_stays_until_the_load_may_decide_again() -> None:
    pools: dict[str, Any] = {"samplers": Sized()}
    subject = Scaler(pools, AutoscaleSection(min=1, max=8, settle=0))
    busy = Load(4, starting=0, without_room=0, waited=1.0, waiting_requests=9, ready_groups=0, trained=1, strict=False)
    answered = subject.answer(ScaleRequest(replicas={"samplers": 4}))
    assert "2 -> 4, until this start of the run ends (set sampler.replicas=4 to keep it)" in answered.lines[0]
    assert subject.follow(busy) is None and pools["samplers"].target == 4
    subject.answer(ScaleRequest(replicas={"samplers": None}))
    scaled = subject.follow(busy)
    assert scaled is not None and (scaled.before, scaled.after) == (4, 5) and "waited" in scaled.reason
    assert [decision.after for decision in subject.decisions] == [4, 5]


def test_what_goes_wrong_in_the_status_does_not_end_it_and_the_last_word_is_that_the_run_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[str] = []

    def slowly(directory: RunDirectory, status: Status) -> None:
        writes.append(status.state)
        if len(writes) == 1:
            raise ValueError("a bug")
        time.sleep(0.3)  # in its thread: the run ends meanwhile
        write_status(directory, status)

    monkeypatch.setattr("brain_align.deploy.monitor.run_monitor._EVERY", 0.01)
    monkeypatch.setattr("brain_align.deploy.monitor.run_monitor.write_status", slowly)
    assert read_status(ended(tmp_path).directory).state == "ended"
    assert len(writes) > 2


class Unhurried(LocalSampler):
    """Takes its time until the test has what it wants."""

    hurry = False

    async def sample(self, prompt: Prompt) -> None:
        await self.work(0 if Unhurried.hurry else 0.5)


def test_a_live_run_takes_what_is_asked_of_it_from_another_thread(tmp_path: Path) -> None:
    subject = Simulation(
        tmp_path,
        {**ALGORITHM, "prompts_per_round": 64, "updates_per_round": 16},
        (2, lambda name, _log: Unhurried(name)),
        reward_and_prior(),
    )
    obeyed: list[bool] = []

    async def operate() -> None:
        async with asyncio.timeout(30):
            while not subject.tracker.progress().sampled:
                await asyncio.sleep(0.01)
            for numbers in (["samplers=4", "scorers.reward=2"], ["samplers=0"], ["samplers=1"]):
                answered = await asyncio.to_thread(ask, subject.directory, parse_replicas(numbers), 20)
                obeyed.append(answered.refusal is None)
            Unhurried.hurry = True
            while len(subject.services.samplers.replicas) > 1:
                await asyncio.sleep(0.01)

    async def together() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(subject.run())
            tasks.create_task(operate())

    asyncio.run(asyncio.wait_for(together(), 60))
    assert obeyed == [True, False, True]
    assert subject.services.scorers["reward"].target == 2
    assert [change.after for change in read_status(subject.directory).scaling] == [4, 2, 1]
    assert len(set(subject.trained())) == 128
