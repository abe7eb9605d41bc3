"""The whole control plane over a real store, with services in this process that fail."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from common.errors import PipelineError
from common.leases import Prompt
from common.schemas import PRIOR
from common.store import SampleStore
from deploy.pool import PoolSettings
from deploy.status import read_status
from tests.stand_ins import LocalLearner, LocalSampler, LocalScorer, Simulation, reward_and_prior

ROUNDS, PROMPTS, STEPS = 3, 12, 6
ALGORITHM = {"rounds": ROUNDS, "prompts_per_round": PROMPTS, "updates_per_round": STEPS, "batch_prompts": 4}


class Poisoned(LocalSampler):
    """Dies of every prompt with one of these ids."""

    poison = frozenset({"p5", "e1"})

    async def sample(self, prompt: Prompt) -> None:
        await asyncio.sleep(0)
        if prompt.prompt_id in self.poison:
            self.kill()
            self._check()


class Faulty(LocalScorer):
    """Fails where a group of the prompt p7 is among those that it is given."""

    async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        if "p7" in groups["prompt_id"].to_pylist():
            raise PipelineError("cannot score this")
        return await super().score(groups)


class Interrupted(Exception):
    """The run ends here."""


class Ending(LocalLearner):
    """Takes so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        if method == "train_step":
            if not self._left:
                raise Interrupted
            self._left -= 1
        return await super().call(method, *args, timeout=timeout)


def start(root: Path, staleness: int, sampler: type[LocalSampler] = Poisoned, **changes: Any) -> Simulation:
    settings: dict[str, Any] = {"scorers": reward_and_prior(), "evaluated": 3, **changes}
    subject = Simulation(
        root,
        {**ALGORITHM, "max_staleness": staleness},
        (2, lambda name, _log: sampler(name)),
        recipe={"sampler": {"lease_prompts": 4}, "seed": 3},
        samplers_settings=PoolSettings(start=5, slots=1 if staleness == 0 else 2, backoff=0.001),
        **settings,
    )
    asyncio.run(asyncio.wait_for(subject.run(), 60))
    return subject


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_deadly_prompt_is_left_out_for_good_and_everything_else_goes_on(tmp_path: Path, staleness: int) -> None:
    subject = start(tmp_path, staleness)
    left_out = {(item.purpose, item.prompt_id) for item in subject.work.quarantine}
    assert left_out == {("train", "p5"), ("validation", "e1"), ("test", "e1")}
    rows = SampleStore(subject.directory.own_store, "run").groups(list(subject.store.group_ids)).to_pylist()
    assert "p5" not in {row["prompt_id"] for row in rows}
    assert len(SampleStore(subject.directory.own_store, "run").steps()) == ROUNDS * STEPS
    for version in range(ROUNDS + 1):
        result = subject.evaluation.result("validation", version)
        assert (result.prompts, result.failed) == (2, 1)
    assert len(subject.evaluation.texts("validation", 0)) == 3
    assert "left out: prompt p5 of train round" in subject.said.getvalue()
    assert {item.prompt_id for item in read_status(subject.directory).quarantined} == {"p5", "e1"}


def test_in_strict_mode_a_resumed_run_trains_the_same_groups_in_the_same_order(tmp_path: Path) -> None:
    """Ended after any step and started again, with the quarantine on record: what was left out changes nothing."""
    whole = start(tmp_path / "whole", 0).trained()

    for step in (1, STEPS - 1, STEPS + 2):
        with pytest.raises(Interrupted):
            start(tmp_path / str(step), 0, learner=Ending(step))
        assert start(tmp_path / str(step), 0).trained() == whole


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_group_that_fails_in_a_scorer_is_left_out_and_named(tmp_path: Path, staleness: int) -> None:
    scorers = {**reward_and_prior(), "reward": (1, lambda _name, _log: Faulty("reward"))}
    subject = start(tmp_path, staleness, LocalSampler, scorers=scorers)
    (item,) = subject.work.quarantine
    assert (item.service, item.prompt_id, item.purpose) == ("reward", "p7", "train")
    assert "cannot score this" in item.error
    store = SampleStore(subject.directory.own_store, "run")
    assert item.group_id not in subject.trained() and len(store.steps()) == ROUNDS * STEPS
    assert not store.has_score(item.group_id, "reward")
    assert start(tmp_path, staleness, LocalSampler, scorers=scorers).trained() == subject.trained()  # nothing is redone


def test_a_group_that_fails_in_two_scorers_is_left_out_once(tmp_path: Path) -> None:
    scorers = {PRIOR: (1, lambda _name, _log: Faulty(PRIOR)), "reward": (1, lambda _name, _log: Faulty("reward"))}
    subject = start(tmp_path, 1, LocalSampler, scorers=scorers)
    assert [item.prompt_id for item in subject.work.quarantine] == ["p7"]


def test_a_scorer_that_always_fails_ends_the_run_with_its_error(tmp_path: Path) -> None:
    class Broken(LocalScorer):
        async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
            raise PipelineError("no such file")

    scorers = {**reward_and_prior(), PRIOR: (1, lambda _name, _log: Broken(PRIOR))}
    with pytest.raises(PipelineError, match=r"More than 5 of the 12 .*train round 0 .*of prior: .*no such file"):
        start(tmp_path, 1, LocalSampler, scorers=scorers, evaluated=0)
