"""The whole control plane over a real store, with services in this process that fail."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from brain_align.common.errors import PipelineError
from brain_align.common.requests import Prompt, SampleRequest
from brain_align.common.schemas import PRIOR
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.actors.pool import MAX_ATTEMPTS, PoolSettings
from brain_align.deploy.conductor.sampling import FATAL_LOSSES
from brain_align.deploy.monitor.status import read_status
from brain_align.learner.step_report import StepReport
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

    async def train_step(self, step: int, batch: pa.RecordBatch) -> StepReport:
        if not self._left:
            raise Interrupted
        self._left -= 1
        return await super().train_step(step, batch)


def start(root: Path, staleness: int, sampler: type[LocalSampler] = Poisoned, **changes: Any) -> Simulation:
    settings: dict[str, Any] = {"scorers": reward_and_prior(), "evaluated": 3, "recipe": {}, **changes}
    settings["recipe"] = {"sampler": {"lease_prompts": 4}, "seed": 3, **settings["recipe"]}
    subject = Simulation(
        root,
        {**ALGORITHM, "max_staleness": staleness},
        (2, lambda name, _log: sampler(name)),
        samplers_settings=PoolSettings(start=5, slots=1 if staleness == 0 else 2, backoff=0.001),
        **settings,
    )
    subject.run_here()
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
    assert "quarantined: prompt p5 of train round" in subject.said.getvalue()
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


@pytest.mark.parametrize("fails", [MAX_ATTEMPTS - 1, MAX_ATTEMPTS])
def test_a_group_is_given_up_for_failures_of_its_own_alone(tmp_path: Path, fails: int) -> None:
    """That calls of several groups failed, it among them, is not held against it."""
    alone: list[str] = []

    class Moody(LocalScorer):
        async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
            if "p7" in groups["prompt_id"].to_pylist():
                if groups.num_rows > 1:
                    raise PipelineError("too many for this one")
                alone.append("p7")
                if len(alone) <= fails:
                    raise PipelineError("not yet")
            return await super().score(groups)

    scorers = {**reward_and_prior(), "reward": (1, lambda _name, _log: Moody("reward"))}
    subject = start(tmp_path, 0, LocalSampler, scorers=scorers)
    assert len(subject.work.quarantine) == (fails == MAX_ATTEMPTS)


class Recording(LocalSampler):
    """Notes for which purposes and rounds, and from which versions, it samples."""

    requests: ClassVar[list[SampleRequest]] = []

    async def generate(self, request: SampleRequest) -> AsyncGenerator[pa.RecordBatch]:
        self.requests.append(request)
        async for groups in super().generate(request):
            yield groups


def test_evaluation_has_its_share_of_the_samplers_while_training_wants_them_all(tmp_path: Path) -> None:
    Recording.requests.clear()
    Simulation(
        tmp_path,
        {"rounds": 2, "prompts_per_round": 64, "updates_per_round": 16, "batch_prompts": 4, "max_staleness": 1},
        (1, lambda name, _log: Recording(name)),
        reward_and_prior(),
        evaluated=8,
        recipe={"sampler": {"lease_prompts": 2}},
    ).run_here()
    purposes = [request.purpose for request in Recording.requests]
    first = purposes.index("validation")
    assert first < 9, "the prior is evaluated while rounds 0 and 1 are sampled"
    assert purposes[:32].count("train") > 24


def test_evaluation_has_its_share_of_a_scorer_that_is_slower_than_the_samplers(tmp_path: Path) -> None:
    calls: list[str] = []

    class Slow(LocalScorer):
        async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
            calls.append(groups["lease_id"][0].as_py())
            return await super().score(groups)

    Simulation(
        tmp_path,
        {"rounds": 2, "prompts_per_round": 64, "updates_per_round": 16, "batch_prompts": 4, "max_staleness": 1},
        (2, lambda name, _log: LocalSampler(name)),
        {**reward_and_prior(), "reward": (1, lambda _name, _log: Slow("reward", 0.01))},
        evaluated=8,
        recipe={"sampler": {"lease_prompts": 2}},
    ).run_here()
    evaluations = [number for number, request in enumerate(calls) if not request.startswith("train")]
    assert evaluations[2] < 48, "while groups of rounds 0 and 1 wait, 64 calls of them"


def test_leases_that_wait_are_sampled_from_what_was_published_meanwhile(tmp_path: Path) -> None:
    """Round 1 is admitted with version 0; while one sampler is at it, version 1 comes."""
    Recording.requests.clear()
    subject = Simulation(
        tmp_path,
        {"rounds": 2, "prompts_per_round": 64, "updates_per_round": 1, "batch_prompts": 4, "max_staleness": 1},
        (1, lambda name, _log: Recording(name, seconds=0.002)),
        reward_and_prior(),
        recipe={"sampler": {"lease_prompts": 4}},
    )
    subject.run_here()
    of_round_1 = [request.version for request in Recording.requests if request.round == 1]
    assert of_round_1 and set(of_round_1) == {1}
    rows = SampleStore(subject.directory.own_store, "run").groups(list(subject.store.group_ids)).to_pylist()
    assert all(0 <= row["round"] - row["proposal_version"] <= 1 for row in rows)


def test_a_prompt_that_has_killed_samplers_is_taken_out_of_rounds_that_wait(tmp_path: Path) -> None:
    attempts: list[str] = []

    class Deadly(LocalSampler):
        async def sample(self, prompt: Prompt) -> None:
            await asyncio.sleep(0)
            attempts.append(prompt.prompt_id)
            if prompt.prompt_id == "p5":
                self.kill()
                self._check()

    class SamePrompts(Simulation):
        rounds_an_epoch = 1

    subject = SamePrompts(
        tmp_path,
        {"rounds": 2, "prompts_per_round": 8, "updates_per_round": 2, "batch_prompts": 4, "max_staleness": 1},
        (1, lambda name, _log: Deadly(name)),
        reward_and_prior(),
        recipe={"sampler": {"lease_prompts": 2}},
        samplers_settings=PoolSettings(start=5, slots=1, backoff=0.001),
    )
    subject.run_here()
    (item,) = subject.work.quarantine
    assert (item.prompt_id, item.round) == ("p5", 0)
    assert attempts.count("p5") == FATAL_LOSSES  # and in round 1, admitted beside round 0, not once
    assert len(SampleStore(subject.directory.own_store, "run").steps()) == 4


def test_the_learner_s_wait_is_seen_before_it_ends(tmp_path: Path) -> None:
    """And what is waited for is groups to train on, not the evaluation at the end."""
    seen: list[float] = []

    class Slow(LocalSampler):
        async def sample(self, prompt: Prompt) -> None:
            await asyncio.sleep(0.01)
            seen.append(subject.conductor.groups.waited_seconds)

    subject = Simulation(
        tmp_path,
        {"rounds": 1, "prompts_per_round": 8, "updates_per_round": 2, "batch_prompts": 4},
        (1, lambda name, _log: Slow(name)),
        reward_and_prior(),
        evaluated=8,
    )
    subject.run_here()
    waited = subject.conductor.groups.waited_seconds
    assert 0 < seen[6] < waited
    assert seen[-1] == waited


def test_a_scorer_that_always_fails_ends_the_run_with_its_error(tmp_path: Path) -> None:
    class Broken(LocalScorer):
        async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
            raise PipelineError("no such file")

    scorers = {**reward_and_prior(), PRIOR: (1, lambda _name, _log: Broken(PRIOR))}
    with pytest.raises(PipelineError, match=r"'prior' has given no values for 0.2 s .*no such file"):
        start(tmp_path, 1, LocalSampler, scorers=scorers, evaluated=0, recipe={"timeouts": {"outage": 0.2}})
