"""The conductor with stand-ins for the actors: every crash point of a run, in seconds instead of hours.

The stand-ins answer at once with made-up groups and scores; what is tested is which work the conductor gives out, in
which order it commits, and what a second start makes of an interruption.
"""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.requests import Prompt
from brain_align.common.schemas import PRIOR
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.actors.actor import Spawn
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.conductor.conductor import Conductor
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.run.trackers.open_trackers import Trackers
from brain_align.deploy.schedule.evaluation import Evaluation
from brain_align.deploy.schedule.quarantine import Quarantine
from brain_align.deploy.schedule.request_plan import RequestPlan
from brain_align.deploy.schedule.round_prompts import DrawnPrompts, TrainingRequests
from brain_align.deploy.schedule.rounds import Rounds
from brain_align.deploy.services.services import Services
from brain_align.learner.step_report import StepReport
from tests.stand_ins import LocalLearner, LocalSampler, LocalScorer
from tests.unit.factories import recipe_settings

TRAIN = [Prompt(f"p{number}", "text", (1,), "gold") for number in range(24)]
HELD_BACK = [Prompt(f"e{number}", "text", (1,), "gold") for number in range(2)]
ROUNDS, STEPS_A_ROUND = 3, 4


class PowerCut(Exception):
    """The process ends here."""


class World:
    """What outlives a crash: the learner's checkpoint; and when the next crash comes."""

    def __init__(
        self, crash_at: int | None = None, last_step: int = ROUNDS * STEPS_A_ROUND, *, evaluated: bool = True
    ) -> None:
        self.calls = 0
        self.evaluated = evaluated
        self.last_step = last_step
        self.crash_at = crash_at
        self.power_lasts_until: int | None = None  # the last step before a crash
        self.saved = 0
        self.published: list[int] = []

    def call(self) -> None:
        self.calls += 1
        if self.calls == self.crash_at:
            raise PowerCut


class StandInSampler(LocalSampler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    async def sample(self, prompt: Prompt) -> None:
        await asyncio.sleep(0)
        self.world.call()


class StandInScorer(LocalScorer):
    def __init__(self, world: World, name: str) -> None:
        super().__init__(name)
        self.world = world

    async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        for _ in range(groups.num_rows):  # however many a call has, so that every run has as many calls
            self.world.call()
        return await super().score(groups)


def stand_in_pools(world: World, directory: RunDirectory, scorers: Sequence[str]) -> dict[str, Pool]:
    """Two samplers that take two requests each, and a scorer of each name."""
    settings = PoolSettings(start=5, slots=2)
    samplers = Pool("sampler", 2, lambda _name, _log: StandInSampler(world), directory.log, settings)
    pools = {
        name: Pool(f"scorer-{name}", 1, scorer_of(world, name), directory.log, PoolSettings(start=5))
        for name in scorers
    }
    return {"": samplers, **pools}


def scorer_of(world: World, name: str) -> Spawn:
    return lambda _name, _log: StandInScorer(world, name)


class StandInLearner(LocalLearner):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.step = world, world.saved

    async def start(self) -> int:
        return self.world.saved

    async def train_step(self, step: int, batch: pa.RecordBatch) -> StepReport:
        await asyncio.sleep(0)
        self.world.call()
        if self.step == self.world.power_lasts_until:
            raise PowerCut
        assert step == self.step + 1
        self.step += 1
        return await super().train_step(step, batch)

    async def save(self, step: int, *, keep: Sequence[int]) -> None:
        await asyncio.sleep(0)
        self.world.call()
        assert bool(keep) == self.world.evaluated
        assert step == self.step and all(kept % STEPS_A_ROUND == 0 and kept <= step for kept in keep)
        self.world.saved = step

    async def publish(self, version: int, step: int) -> None:
        await asyncio.sleep(0)
        self.world.call()
        ends = min(version * STEPS_A_ROUND, self.world.last_step)
        assert step == self.world.saved == ends, "published without its checkpoint"
        self.world.published.append(version)


def start(root: Path, world: World, staleness: int) -> SampleStore:
    """One start of the run; raises PowerCut where the world says so. Returns the training store."""
    algorithm = {
        "rounds": ROUNDS,
        "prompts_per_round": 8,
        "updates_per_round": STEPS_A_ROUND,
        "batch_prompts": 2,
        "max_staleness": staleness,
    }
    settings = recipe_settings(algorithm=algorithm, learner={"checkpoint_steps": 3})
    recipe = Recipe.model_validate(settings)
    store = SampleStore(root / "store", "run")
    plan = RequestPlan("run", 0, 2, root / "policies")
    held_back = SampleStore(root / "evaluation", "run")
    evaluation = Evaluation(recipe, held_back, plan, {"validation": HELD_BACK, "test": HELD_BACK}, [PRIOR, "reward"])
    pools = stand_in_pools(world, RunDirectory(root), (PRIOR, "reward"))
    services = Services(pools.pop(""), pools, StandInLearner(world))
    tracker = Tracker(recipe, root / "metrics.jsonl", Trackers([]), PlainConsole(quiet=True))
    tracker.recovered(store)
    round_prompts = DrawnPrompts(recipe.algorithm, TRAIN, 0)
    scorers = [PRIOR, "reward"]
    requests = TrainingRequests(recipe.algorithm, round_prompts, plan, n=2, fixed=recipe.has_fixed_proposal)
    work = RunPlan(
        store,
        Rounds(recipe.algorithm, round_prompts, 0),
        scorers,
        scorers,
        requests,
        evaluation,
        Quarantine(root / "quarantine.json"),
    )
    conductor = Conductor(recipe, work, tracker, services)
    try:
        with store.training():
            asyncio.run(asyncio.wait_for(conductor.run(), 20))
    finally:
        tracker.close()
    for version in evaluation.due_versions():
        assert evaluation.is_complete("validation", version)
    assert evaluation.is_complete("test", 0) and evaluation.is_complete("test", evaluation.best_version())
    return store


def trained(store: SampleStore) -> list[list[str]]:
    return [row["group_ids"] for row in store.steps()]


@pytest.mark.usefixtures("no_full_collections")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_crash_at_any_call_loses_nothing_and_trains_nothing_twice(tmp_path: Path, staleness: int) -> None:
    whole = World()
    reference = start(tmp_path / "whole", whole, staleness)
    assert len(trained(reference)) == ROUNDS * STEPS_A_ROUND
    for moment in range(1, whole.calls + 1):
        root, world = tmp_path / str(moment), World(crash_at=moment)
        with pytest.raises(PowerCut):
            start(root, world, staleness)
        held = set(SampleStore(root / "store", "run").group_ids)
        world.crash_at = None
        store = start(root, world, staleness)
        groups = [name for step in trained(store) for name in step]
        assert len(groups) == len(set(groups)) == 24, f"crash at call {moment}"
        assert held <= set(store.group_ids) and set(groups) == set(store.group_ids)
        assert set(world.published) == set(range(ROUNDS + 1))
        if staleness == 0:
            assert trained(store) == trained(reference)
        rows = store.groups(list(store.group_ids)).to_pylist()
        assert all(0 <= row["round"] - row["proposal_version"] <= staleness for row in rows)


def crash_after_step(root: Path, step: int) -> World:
    """A run that ended without warning in mid-round, behind a checkpoint."""
    world = World()
    world.power_lasts_until = step
    with pytest.raises(PowerCut):
        start(root, world, 0)
    world.power_lasts_until = None
    return world


def test_a_damaged_part_of_a_recorded_step_is_sampled_again(tmp_path: Path) -> None:
    world = crash_after_step(tmp_path, 2)
    for part in sorted((tmp_path / "store/groups").iterdir()):
        part.write_bytes(b"torn")
    store = start(tmp_path, world, 0)
    assert trained(store) == trained(start(tmp_path / "reference", World(), 0))


def test_a_lost_record_of_a_trained_step_stops_the_run(tmp_path: Path) -> None:
    world = crash_after_step(tmp_path, 3)  # step 3 has a checkpoint, in the middle of the first round
    sorted((tmp_path / "store/steps").iterdir())[1].write_bytes(b"torn")
    with pytest.raises(UserError, match="lost the record of step 2"):
        start(tmp_path, world, 0)


def test_a_start_reads_no_group_that_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a million groups in the store, a resumed run looks at its index, and at the few that lack scores."""
    world = crash_after_step(tmp_path, 6)
    read: list[str] = []
    batches = SampleStore.batches

    def recording(store: SampleStore, **selection: Any) -> Iterator[pa.RecordBatch]:
        for batch in batches(store, **selection):
            read.extend(batch["group_id"].to_pylist())
            yield batch

    store = SampleStore(tmp_path / "store", "run")
    complete = set(store.group_ids) - set(store.unscored("reward")) - set(store.unscored(PRIOR))
    assert len(complete) >= 16
    monkeypatch.setattr(SampleStore, "batches", recording)
    start(tmp_path, world, 0)
    assert not complete & set(read)
