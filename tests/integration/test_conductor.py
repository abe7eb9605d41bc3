"""The conductor with stand-ins for the actors: every crash point of a run, in seconds instead of hours.

The stand-ins answer at once with made-up groups and scores; what is tested is which work the conductor gives out, in
which order it commits, and what a second start makes of an interruption.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
from rich.console import Console

from common.config.recipe import Recipe
from common.errors import PipelineError, UserError
from common.leases import Lease, Prompt
from common.schemas import GROUPS, PRIOR, batch_from_rows
from common.store import SampleStore
from deploy.conductor import Conductor
from deploy.draws import DrawnPrompts, TrainingLeases
from deploy.evaluation import Evaluation
from deploy.lease_plan import LeasePlan
from deploy.rounds import Rounds
from deploy.services import ActorLostError, Pool, Services
from deploy.tracking import Tracker
from deploy.work import Work
from learner.step_report import StepReport
from tests.unit.factories import group, recipe_settings, scores

TRAIN = [Prompt(f"p{number}", "text", (1,), "gold") for number in range(24)]
HELD_BACK = [Prompt(f"e{number}", "text", (1,), "gold") for number in range(4)]
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
        self.saved = 0
        self.published: list[int] = []

    def call(self) -> None:
        self.calls += 1
        if self.calls == self.crash_at:
            raise PowerCut


class StandInSamplers:
    replicas = (0, 1)

    def __init__(self, world: World) -> None:
        self.world = world

    async def start(self) -> None: ...

    async def call(self, _method: str, lease: Lease, timeout: float) -> pa.RecordBatch:
        await asyncio.sleep(0)
        self.world.call()
        pairs = zip(lease.group_ids, lease.prompts, strict=True)
        columns = {"round": lease.round, "proposal_version": lease.version}
        return batch_from_rows(GROUPS, [group(name, prompt_id=prompt.prompt_id, **columns) for name, prompt in pairs])


class StandInScorers:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name

    async def start(self) -> None: ...

    async def call(self, _method: str, groups: pa.RecordBatch, timeout: float) -> pa.RecordBatch:
        await asyncio.sleep(0)
        self.world.call()
        return scores(self.name, {name: [1.0, 2.0] for name in groups["group_id"].to_pylist()})


class StandInLearner:
    def __init__(self, world: World) -> None:
        self.world, self.step = world, world.saved

    async def start(self, _timeout: float) -> int:
        return self.world.saved

    async def call(self, method: str, *arguments: Any, timeout: float) -> Any:
        await asyncio.sleep(0)
        self.world.call()
        if method == "train_step":
            assert arguments[0] == self.step + 1
            self.step += 1
            return StepReport({"loss": 1.0, "tokens": 10.0}, notes=[])
        if method == "save":
            _step, kept = arguments
            assert bool(kept) == self.world.evaluated
            assert all(step % STEPS_A_ROUND == 0 and step <= self.step for step in kept)
            self.world.saved = self.step
        else:
            version, step = arguments
            ends = min(version * STEPS_A_ROUND, self.world.last_step)
            assert step == self.world.saved == ends, "published without its checkpoint"
            self.world.published.append(version)
        return None


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
    plan = LeasePlan("run", 0, 2, root / "policies")
    held_back = SampleStore(root / "evaluation", "run")
    evaluation = Evaluation(recipe, held_back, plan, {"validation": HELD_BACK, "test": HELD_BACK}, [PRIOR, "reward"])
    services = SimpleNamespace(
        samplers=StandInSamplers(world),
        scorers={name: StandInScorers(world, name) for name in (PRIOR, "reward")},
        learner=StandInLearner(world),
    )
    tracker = Tracker(recipe.algorithm, root / "metrics.jsonl", root / "board", Console(quiet=True))
    tracker.recovered(store)
    draws = DrawnPrompts(recipe.algorithm, TRAIN, 0)
    scorers = [PRIOR, "reward"]
    leases = TrainingLeases(recipe.algorithm, draws, plan, n=2, fixed=recipe.has_fixed_proposal)
    work = Work(store, Rounds(recipe.algorithm, draws, 0), scorers, scorers, leases, evaluation)
    conductor = Conductor(recipe, work, tracker, cast(Services, services))
    try:
        asyncio.run(asyncio.wait_for(conductor.run(), 20))
    finally:
        tracker.close()
    for version in evaluation.due_versions():
        assert evaluation.is_complete("validation", version)
    assert evaluation.is_complete("test", 0) and evaluation.is_complete("test", evaluation.best_version())
    return store


def trained(store: SampleStore) -> list[list[str]]:
    return [row["group_ids"] for row in store.steps()]


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
    learner_call = StandInLearner.call

    async def call(self: StandInLearner, method: str, *arguments: Any, timeout: float) -> Any:
        if method == "train_step" and arguments[0] == step + 1:
            raise PowerCut
        return await learner_call(self, method, *arguments, timeout=timeout)

    StandInLearner.call = call  # type: ignore[method-assign]
    try:
        with pytest.raises(PowerCut):
            start(root, world, 0)
    finally:
        StandInLearner.call = learner_call  # type: ignore[method-assign]
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


class StandInHandle:
    """An actor handle whose calls do what they are told."""

    def __init__(self, behaviour: list[Any]) -> None:
        self.behaviour = behaviour

    def __getattr__(self, name: str) -> Any:
        async def remote(*_arguments: Any) -> Any:
            if name == "ready":
                return None
            what = self.behaviour.pop(0)
            if isinstance(what, Exception):
                raise what
            if what == "hang":
                await asyncio.sleep(60)
            return what

        return SimpleNamespace(remote=remote)


def pool(directory: Path, behaviour: list[Any], monkeypatch: pytest.MonkeyPatch, starts: list[str]) -> Pool:
    from deploy.run_directory import RunDirectory

    monkeypatch.setattr("ray.kill", lambda _: None)

    def spawn(name: str, _log: str) -> Any:
        starts.append(name)
        return StandInHandle(behaviour)

    return Pool("sampler", 1, spawn, RunDirectory(directory), 5)


async def started_call(subject: Pool) -> Any:
    await subject.start()
    return await subject.call("generate", timeout=0.2)


def test_a_lost_or_hung_replica_is_restarted_and_the_call_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import ActorDiedError, OutOfMemoryError

    for trouble in (ActorDiedError(), OutOfMemoryError("full"), "hang"):
        starts: list[str] = []
        assert asyncio.run(started_call(pool(tmp_path, [trouble, "answer"], monkeypatch, starts))) == "answer"
        assert starts == ["sampler-0", "sampler-0"]


def test_a_call_that_loses_its_replica_each_time_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = pool(tmp_path, ["hang"] * 3, monkeypatch, [])
    with pytest.raises(PipelineError, match=r"3 times: sampler-0 gave no answer .*sampler-0\.log") as stopped:
        asyncio.run(started_call(subject))
    assert not isinstance(stopped.value, ActorLostError)


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
