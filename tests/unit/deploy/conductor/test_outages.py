"""A scorer that is away is waited for, and told from a text that has no value."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from brain_align.common.config.run import TimeoutsSection
from brain_align.common.errors import PipelineError, ScorerAwayError
from brain_align.common.schemas import SCORES, batch_from_rows
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.conductor import availability
from brain_align.deploy.conductor.background import background_tasks
from brain_align.deploy.conductor.group_scorer import GroupScorer
from brain_align.deploy.monitor.status import read_status
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.services.trial import Trial
from brain_align.learner.step_report import StepReport
from tests.stand_ins import LocalActor, LocalLearner, LocalSampler, LocalScorer, Simulation, reward_and_prior
from tests.unit.factories import groups, scores

Answer = Callable[[str, int], float | Exception | None]
"""From a group and how many calls there were before, its values, or the error."""


class Service(LocalActor):
    """Gives groups values as a test says, or says as scorers do that it is away."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.calls: list[list[str]] = []
        self._answer = answer

    async def ready(self) -> dict[str, str]:
        return {"name": "reward", "digest": "digest"}

    async def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        ids = batch["group_id"].to_pylist()
        number = len(self.calls)
        self.calls.append(ids)
        await asyncio.sleep(0.001)  # others come to wait
        found = {name: self._answer(name, number) for name in ids}
        rows = [
            {
                "group_id": name,
                "scorer": "reward",
                "scorer_digest": "digest",
                "values": [None if isinstance(value, Exception) else value] * 2,
                "gold_value": None,
                "error": None if isinstance(value, float) else str(value or "no number"),
                "scored_at": 0.0,
            }
            for name, value in found.items()
        ]
        scores = batch_from_rows(SCORES, rows)
        away = frozenset(name for name, value in found.items() if isinstance(value, Exception))
        if away:
            raise ScorerAwayError(str(found[min(away)]), scores, away)
        return scores


def scored(
    folder: Path, names: Sequence[str], answer: Answer, *, together: int = 4, outage: float = 5.0
) -> tuple[dict[str, tuple[list[float | None], str | None]], Service, list[str]]:
    """Score groups; returns the values and error of each, the service, and what the user was told."""
    service, said = Service(answer), list[str]()

    async def score() -> pa.RecordBatch:
        pool = Pool("scorer-reward", 1, lambda _name, _log: service, RunDirectory(folder).log, PoolSettings(start=5))
        await pool.start()
        async with background_tasks() as begin:
            limits = TimeoutsSection(outage=outage, lease=5)
            return await GroupScorer("reward", pool, together, limits, begin, said.append).score(groups(*names))

    rows = asyncio.run(asyncio.wait_for(score(), 20)).to_pylist()
    return {row["group_id"]: (row["values"], row["error"]) for row in rows}, service, said


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_FIRST_PAUSE", 0.01)


DOWN = ConnectionError("connection refused")


def test_an_outage_is_waited_for_and_leaves_no_null(tmp_path: Path) -> None:
    names = [f"g{number}" for number in range(40)]
    found, service, said = scored(tmp_path, names, lambda _, before: DOWN if 1 <= before < 12 else 1.0, together=2)
    assert set(map(str, found.values())) == {"([1.0, 1.0], None)"}
    assert len(said) == 2
    assert "gives no values at present: connection refused" in said[0]
    assert "gives values again" in said[1]
    assert len(service.calls) < 50  # few are tried in vain


def test_a_scorer_that_fails_is_asked_for_its_witness_before_groups_that_wait(tmp_path: Path) -> None:
    names = [f"g{number:02}" for number in range(16)]
    found, service, _ = scored(tmp_path, names, lambda _, before: DOWN if 1 <= before < 5 else 1.0, together=8)
    assert set(map(str, found.values())) == {"([1.0, 1.0], None)"}
    whole, failed, alone, other, *witnesses = service.calls[:6]
    assert [len(call) for call in (whole, failed, alone, other)] == [8, 8, 1, 1]  # the other had the scorer's promise
    assert witnesses == [["g00"]] * 2  # the second one is answered; nothing else was asked for in vain


def test_one_poisonous_text_is_told_from_an_outage(tmp_path: Path) -> None:
    found, _, said = scored(tmp_path, "abcdefgh", lambda name, _: ValueError("odd text") if name == "c" else 2.0)
    assert found.pop("c") == ([None, None], "odd text")
    assert {str(row) for row in found.values()} == {"([2.0, 2.0], None)"}
    assert said == []  # nobody was away


def test_a_poisonous_text_that_comes_first_is_told_from_an_outage(tmp_path: Path) -> None:
    found, _, _ = scored(tmp_path, "abc", lambda name, _: ValueError("odd") if name == "a" else 2.0, together=1)
    assert found == {"a": ([None, None], "odd"), "b": ([2.0, 2.0], None), "c": ([2.0, 2.0], None)}


@pytest.mark.parametrize("value", [DOWN, None])  # also a service that answers null, when its token has expired
def test_a_scorer_that_stays_away_ends_the_work_with_its_own_error(tmp_path: Path, value: Exception | None) -> None:
    with pytest.raises(
        PipelineError, match=r"'reward' has given no values for 0.2 s \(timeouts.outage\): .*(refused|no number)"
    ):
        scored(tmp_path, "abcdefgh", lambda _name, before: 1.0 if before < 1 else value, outage=0.2)


def test_a_scorer_that_never_gave_a_value_ends_the_work_too(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="connection refused"):
        scored(tmp_path, "ab", lambda *_: DOWN, outage=0.1)


def test_a_text_that_rightly_has_no_value_is_asked_for_again_alone(tmp_path: Path) -> None:
    found, service, said = scored(tmp_path, "abcd", lambda name, _: None if name == "b" else 1.0)
    assert found["b"] == ([None, None], "no number")
    assert len(service.calls) == 5  # all; twice the one alone, and each time one that had a value
    assert said == []


class HalfAway(LocalActor):
    """Gives one output of each group a value, and says of the other that its service is away."""

    async def ready(self) -> dict[str, str]:
        return {"name": "reward", "digest": "digest"}

    async def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        ids = batch["group_id"].to_pylist()
        raise ScorerAwayError(
            "busy", scores("reward", {name: [1.0, None] for name in ids}, error="busy"), frozenset(ids)
        )


def test_what_a_scorer_gives_in_part_is_kept_when_it_stays_so(tmp_path: Path) -> None:
    async def score() -> pa.RecordBatch:
        pool = Pool("scorer-reward", 1, lambda *_: HalfAway(), RunDirectory(tmp_path).log, PoolSettings(start=5))
        await pool.start()
        async with background_tasks() as begin:
            scorer = GroupScorer("reward", pool, 2, TimeoutsSection(outage=0.5, lease=5), begin, print)
            seen = groups("seen")
            scorer.scoring.tried({"reward": Trial(seen, scores("reward", {"seen": [1.0, None]}))})
            return await scorer.score(groups("a", "b", "c"))

    rows = asyncio.run(asyncio.wait_for(score(), 20))
    assert rows["values"].to_pylist() == [[1.0, None]] * 3


class GoldAway(LocalActor):
    """Is down for a while in the middle of a group: its outputs have values, its reference has none."""

    def __init__(self, down: int) -> None:
        super().__init__()
        self._down = down  # calls

    async def ready(self) -> dict[str, str]:
        return {"name": "reward", "digest": "digest"}

    async def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        found: dict[str, list[float | None]] = {name: [1.0, 2.0] for name in batch["group_id"].to_pylist()}
        self._down -= 1
        return scores("reward", found) if self._down < 0 else scores("reward", found, gold_value=None, error="down")


@pytest.mark.parametrize(("down", "gold"), [(2, 0.5), (1000, None)])
def test_a_reference_without_a_value_is_asked_for_again_too(tmp_path: Path, down: int, gold: float | None) -> None:
    scorer = GoldAway(down)

    async def score() -> pa.RecordBatch:
        pool = Pool("scorer-reward", 1, lambda *_: scorer, RunDirectory(tmp_path).log, PoolSettings(start=5))
        await pool.start()
        async with background_tasks() as begin:
            subject = GroupScorer("reward", pool, 2, TimeoutsSection(outage=0.5, lease=5), begin, print)
            subject.scoring.tried({"reward": Trial(groups("seen"), scores("reward", {"seen": [1.0, 2.0]}))})
            return await subject.score(groups("a"))

    (row,) = asyncio.run(asyncio.wait_for(score(), 20)).to_pylist()
    assert (row["values"], row["gold_value"]) == ([1.0, 2.0], gold)


class Unreliable(LocalScorer):
    """A reward that says of groups, by their place, what a test wants: the n-th one that it is asked for."""

    def __init__(self, value: Callable[[int], float | None]) -> None:
        super().__init__("reward")
        self.places: dict[str, int] = {}
        self.value = value

    async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        found = {}
        for name in groups["group_id"].to_pylist():
            value = self.value(self.places.setdefault(name, len(self.places)))
            found[name] = [value, None if value is None else value + 1.0]
        return scores("reward", found, error="no answer")


def run(folder: Path, value: Callable[[int], float | None], *, outage: float = 0.2, **algorithm: int) -> Simulation:
    """A run of 2 rounds of 8 prompts, in 2 steps of 4 each."""
    settings = {"rounds": 2, "prompts_per_round": 8, "updates_per_round": 2, "batch_prompts": 4, **algorithm}
    reward = Unreliable(value)
    scorers = {**reward_and_prior(), "reward": (1, lambda _name, _log: reward)}
    simulation = Simulation(
        folder,
        settings,
        (1, lambda name, _log: LocalSampler(name)),
        scorers,
        recipe={
            "scorers": {"reward": {"kind": "function", "function": "f:f"}},
            "timeouts": {"outage": outage},
        },
    )
    simulation.run_here()
    return simulation


def test_groups_without_values_are_left_out_and_all_steps_are_steps(tmp_path: Path) -> None:
    subject = run(tmp_path, lambda place: None if place in (0, 3, 9) else 1.0)
    steps = subject.store.steps()
    null = set(subject.store.nulls("reward")["group_id"].to_pylist())
    assert len(steps) == 4 and len(null) == 3
    assert not null.intersection(subject.trained())
    assert [len(row["group_ids"]) for row in steps] == [4] * 4
    assert subject.tracker.progress().trained == 16


@pytest.mark.parametrize("strict", [0, 1])
def test_an_outage_in_mid_run_leaves_no_null_and_no_step(tmp_path: Path, strict: int) -> None:
    seen: set[int] = set()

    def value(place: int) -> float | None:
        seen.add(place)
        return 1.0 if len(seen) < 10 else None  # for good, and for groups that had values before, too

    with pytest.raises(PipelineError, match=r"'reward' has given no values for 0.2 s .*no answer.*same command again"):
        run(tmp_path, value, max_staleness=strict)
    store = SampleStore(tmp_path / "store", "run", read_only=True)
    assert store.nulls("reward").num_rows <= 2  # two calls may have crossed the outage's beginning
    assert all(row["metrics"]["trained_prompts"] for row in store.steps())
    status = read_status(RunDirectory(tmp_path))
    assert status.state == "failed"
    assert status.failure is not None and "'reward' has given no values" in status.failure


def test_more_than_5_and_more_than_5_percent_without_values_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"'reward' gave no value to the outputs of 6 of the 8 prompts of train round 0"
    ):
        run(tmp_path, lambda place: None if 1 <= place < 8 else 1.0)
    assert SampleStore(tmp_path / "store", "run", read_only=True).nulls("reward").num_rows == 5


def test_a_round_with_nothing_to_train_on_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    def value(place: int) -> float | None:
        return None if place in (4, 5, 6, 7) else 1.0

    with pytest.raises(
        PipelineError, match=r"Step 3 of round 1 has nothing to train on.*'reward' has no values for it: no"
    ):
        run(tmp_path, value, prompts_per_round=4)
    store = SampleStore(tmp_path / "store", "run", read_only=True)
    assert [row["step"] for row in store.steps()] == [1, 2]


def test_a_resumed_run_asks_again_for_null_values(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="nothing to train on"):
        run(tmp_path, lambda place: None if place in (4, 5, 6, 7) else 1.0, prompts_per_round=4)
    assert SampleStore(tmp_path / "store", "run").nulls("reward").num_rows == 4
    subject = run(tmp_path, lambda _: 1.0, prompts_per_round=4)
    assert subject.store.nulls("reward").num_rows == 0
    assert len(subject.store.steps()) == 4


class Choosy(LocalLearner):
    """Has nothing to learn from batches with some of these groups, by their place in the order of batches."""

    def __init__(self, barren: Callable[[int], bool]) -> None:
        super().__init__()
        self.batches: list[tuple[int, list[str]]] = []
        self._barren = barren

    async def train_step(self, step: int, batch: pa.RecordBatch) -> StepReport:
        self.batches.append((step, batch["group_id"].to_pylist()))
        report = await super().train_step(step, batch)
        if self._barren(len(self.batches) - 1):
            report.metrics["trained_prompts"] = 0.0
        return report


def choosy_run(folder: Path, barren: Callable[[int], bool]) -> tuple[Simulation, Choosy]:
    learner = Choosy(barren)
    settings = {"rounds": 1, "prompts_per_round": 8, "updates_per_round": 3, "batch_prompts": 2}
    subject = Simulation(folder, settings, (1, lambda name, _log: LocalSampler(name)), reward_and_prior(), learner)
    subject.run_here()
    return subject, learner


def test_a_batch_that_trains_nothing_is_no_step_and_others_take_its_place(tmp_path: Path) -> None:
    subject, learner = choosy_run(tmp_path, lambda place: place == 1)
    assert [step for step, _ in learner.batches] == [1, 2, 2, 3]
    assert [row["group_ids"] for row in subject.store.steps()] == [learner.batches[n][1] for n in (0, 2, 3)]
    assert not set(learner.batches[1][1]).intersection(subject.trained())
    assert subject.tracker.progress().trained == 6
    assert "Step 2: none of its 2 prompts has outputs that objective.name=brain can use" in subject.said.getvalue()


def test_a_run_whose_batches_all_train_nothing_ends_without_a_step(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="Step 1 of round 0 has nothing to train on"):
        choosy_run(tmp_path, lambda _: True)
    assert SampleStore(tmp_path / "store", "run", read_only=True).steps() == []
