"""What a run does when it is asked to end: the step under way is recorded and saved, and none begins."""

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from brain_align.common.system.interruption import SIGNALS, Terminated, asked_to_end, end_by_exceptions
from brain_align.learner.step_report import StepReport
from tests.stand_ins import LocalLearner, LocalSampler, Simulation, reward_and_prior

ALGORITHM = {"rounds": 2, "prompts_per_round": 8, "updates_per_round": 4, "batch_prompts": 2, "max_staleness": 1}


class SavingLearner(LocalLearner):
    def __init__(self) -> None:
        super().__init__(seconds=0.02)
        self.saved: list[int] = []
        self.begun = 0
        self.reached = asyncio.Event()

    async def train_step(self, step: int, batch: pa.RecordBatch) -> StepReport:
        self.begun = step
        if step == 2:
            self.reached.set()
        return await super().train_step(step, batch)

    async def save(self, step: int, *, keep: Sequence[int]) -> None:
        self.saved.append(step)


def test_the_step_under_way_is_recorded_and_saved_and_no_other_begins(tmp_path: Path) -> None:
    learner = SavingLearner()
    samplers = (1, lambda name, _log: LocalSampler(name))
    simulation = Simulation(tmp_path, ALGORITHM, samplers, reward_and_prior(), learner)

    async def scene() -> int | None:
        run = asyncio.create_task(simulation.run())
        await learner.reached.wait()
        stopped = await simulation.conductor.stop()
        await asyncio.sleep(0.1)
        run.cancel()
        await asyncio.wait([run])
        return stopped

    assert asyncio.run(asyncio.wait_for(scene(), 30)) == 2
    assert (learner.begun, learner.saved) == (2, [2])
    assert len(simulation.trained()) == 4


def test_what_has_not_begun_to_train_has_nothing_to_save(tmp_path: Path) -> None:
    learner = SavingLearner()
    samplers = (1, lambda name, _log: LocalSampler(name))
    simulation = Simulation(tmp_path, ALGORITHM, samplers, reward_and_prior(), learner)
    assert asyncio.run(simulation.conductor.stop()) is None
    assert learner.saved == []


@pytest.fixture
def signals() -> Iterator[None]:
    former = {number: signal.getsignal(number) for number in SIGNALS}
    end_by_exceptions(resumes=True)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_ends(
    signals: None, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> None:
        async with asked_to_end() as asked:
            os.kill(os.getpid(), number)
            assert await asyncio.wait_for(asked, 5) == number
            os.kill(os.getpid(), number)
            await asyncio.sleep(5)

    with pytest.raises(Terminated) as ended:
        asyncio.run(scene())
    assert ended.value.number == number
    sentence = f"brain: Interrupted by {signal.Signals(number).name}: run the same command again to resume.\n"
    assert capfd.readouterr().err == 2 * sentence
    with pytest.raises(Terminated):
        os.kill(os.getpid(), number)


def test_where_no_command_obeys_signals_they_stay_as_they_are(signals: None) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    before: list[Any] = [signal.getsignal(number) for number in SIGNALS]

    async def scene() -> None:
        async with asked_to_end() as asked:
            assert [signal.getsignal(number) for number in SIGNALS] == before and not asked.done()

    asyncio.run(scene())
