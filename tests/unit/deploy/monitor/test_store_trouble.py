"""A store that does not answer is seen by the user: on the console, in the log and in the status."""

import asyncio
import re
from pathlib import Path

import pytest
from rich.console import Console

from brain_align.common.store.files.backends import LocalBackend
from brain_align.deploy.commands.status import view
from brain_align.deploy.monitor import run_monitor
from brain_align.deploy.monitor.status import read_status
from tests.stand_ins import LocalSampler, Simulation, reward_and_prior

ALGORITHM = {"rounds": 2, "prompts_per_round": 8, "updates_per_round": 2, "batch_prompts": 4, "max_staleness": 1}
TROUBLE = "s3://bucket/run: AWS Error: ExpiredToken"


def test_a_store_that_is_asked_again_is_said_and_so_is_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_monitor, "_EVERY", 0.01)
    samplers = (1, lambda name, _log: LocalSampler(name))
    simulation = Simulation(tmp_path, ALGORITHM, samplers, reward_and_prior(seconds=0.05))
    shown = Console(width=200)

    async def expire() -> None:
        monkeypatch.setattr(LocalBackend, "trouble", TROUBLE)
        while not simulation.directory.status.exists() or read_status(simulation.directory).store_trouble != TROUBLE:
            await asyncio.sleep(0.01)
        with shown.capture() as capture:
            shown.print(view(read_status(simulation.directory), "running"))
        assert f"The sample store does not answer and is asked again: {TROUBLE}" in capture.get()
        monkeypatch.setattr(LocalBackend, "trouble", None)

    async def both() -> None:
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(simulation.run())
            tasks.create_task(expire())

    asyncio.run(both())
    said = simulation.said.getvalue()
    assert said.count(f"The sample store does not answer and is asked again: {TROUBLE}") == 1
    assert len(re.findall(r"The sample store answers again, after \d+ s\.", said)) == 1
    assert read_status(simulation.directory).store_trouble is None
