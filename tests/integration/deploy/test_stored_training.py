"""Training from a store without samplers: crashes with stand-in services, then the real learner without vLLM."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.schemas import PRIOR
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.conductor.conductor import Conductor
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.stored_inputs import lacking_scores, read_stored_inputs
from brain_align.deploy.run.trackers.open_trackers import Trackers
from brain_align.deploy.services.services import Services
from brain_align.learner.step_report import StepReport
from tests.integration.deploy.test_conductor import PowerCut, StandInLearner, World, stand_in_pools, trained
from tests.stand_ins import LocalSampler
from tests.unit.factories import groups, recipe_settings, scores, step

ROUNDS, STEPS_A_ROUND, GROUPS_A_ROUND = 3, 4, 8


def source_store(root: Path, *, rewarded: int = 20, steps: int = 0) -> Path:
    """Three rounds of eight groups; the last few of all have no rewards yet."""
    store = SampleStore(root / "source", "sampled elsewhere")
    names = [f"{round_}-{number}" for round_ in range(ROUNDS) for number in range(GROUPS_A_ROUND)]
    for name in names:
        round_ = int(name[0])
        store.append_groups(groups(name, round=round_, proposal_version=round_))
    store.append_scores(scores(PRIOR, {name: [-1.0, -2.0] for name in names}))
    store.append_scores(scores("reward", {name: [1.0, 2.0] for name in names[:rewarded]}))
    with store.training():
        for number in range(1, steps + 1):
            store.append_step(step(number, [names[number], names[2 * number]]))
    return root / "source"


def recipe(source: Path, *, replay: bool = False, **changes: Any) -> Recipe:
    algorithm = {
        "rounds": ROUNDS,
        "prompts_per_round": GROUPS_A_ROUND,
        "updates_per_round": STEPS_A_ROUND,
        "batch_prompts": 2,
    }
    store = {"uri": str(source), "replay": replay}
    settings = recipe_settings(
        algorithm=algorithm, learner={"checkpoint_steps": 3}, sampler={"replicas": 0}, store=store
    )
    return Recipe.model_validate({**settings, **changes})


def start(root: Path, world: World, settings: Recipe) -> SampleStore:
    """One start of the run; raises PowerCut where the world says so. Returns the run's own store."""
    directory = RunDirectory(root / "run")
    work = read_stored_inputs(settings, directory).work(settings, "run", directory)
    pools = stand_in_pools(world, directory, work.started_scorers)
    samplers = Pool("sampler", 0, stranger, directory.log, PoolSettings(start=5))
    services = Services(samplers, {name: pools[name] for name in work.started_scorers}, StandInLearner(world))
    tracker = Tracker(settings, root / "metrics.jsonl", Trackers([]), PlainConsole(quiet=True))
    tracker.recovered(work.store)
    try:
        conductor = Conductor(settings, work, tracker, services)
        with work.store.training():
            asyncio.run(asyncio.wait_for(conductor.run(), 20))
    finally:
        tracker.close()
    return SampleStore(directory.store, "run")


def stranger(_name: str, _log: str) -> LocalSampler:
    raise AssertionError("a run without samplers starts none")


def contents(directory: Path) -> dict[str, str]:
    files = [file for file in directory.rglob("*") if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.usefixtures("no_full_collections")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("replay", [False, True])
def test_a_crash_at_any_call_trains_nothing_twice_and_leaves_the_source_alone(tmp_path: Path, replay: bool) -> None:
    source = source_store(tmp_path, steps=10 if replay else 0)
    before = contents(source)
    settings = recipe(source, replay=replay)
    steps = 10 if replay else ROUNDS * STEPS_A_ROUND
    whole = World(last_step=steps, evaluated=False)
    reference = start(tmp_path / "whole", whole, settings)
    assert len(trained(reference)) == steps
    for moment in range(1, whole.calls + 1):
        root, world = tmp_path / str(moment), World(crash_at=moment, last_step=steps, evaluated=False)
        with pytest.raises(PowerCut):
            start(root, world, settings)
        world.crash_at = None
        assert trained(start(root, world, settings)) == trained(reference), f"crash at call {moment}"
        assert set(world.published) == set(range(ROUNDS + 1))
    assert contents(source) == before


def test_rounds_are_those_of_the_store_in_the_order_of_commitment(tmp_path: Path) -> None:
    own = start(tmp_path, World(evaluated=False), recipe(source_store(tmp_path)))
    first_pass = [name for groups_ in trained(own)[:4] for name in groups_]
    assert first_pass == [f"0-{number}" for number in range(GROUPS_A_ROUND)]
    assert [row["published_version"] for row in own.steps() if row["published_version"]] == [1, 2, 3]


def test_a_replay_trains_the_recorded_groups_again_and_publishes_its_end(tmp_path: Path) -> None:
    source = source_store(tmp_path, steps=10)
    world = World(last_step=10, evaluated=False)
    own = start(tmp_path, world, recipe(source, replay=True))
    assert trained(own) == trained(SampleStore(source, None, read_only=True))
    assert world.published == [0, 1, 2, 3]  # the third round ended early, with the tenth step


def test_only_missing_scores_are_made_and_they_stand_in_the_run_s_own_store(tmp_path: Path) -> None:
    world = World(evaluated=False)
    settings = recipe(source_store(tmp_path, rewarded=20))
    inputs = read_stored_inputs(settings, RunDirectory(tmp_path / "run"))
    assert lacking_scores(settings, inputs) == {"reward": 4}
    own = start(tmp_path, world, settings)
    assert own.counts()["groups"] == 0
    assert own.counts()["scores"] == 4
    work = inputs.work(settings, "run", RunDirectory(tmp_path / "run"))
    assert work.started_scorers == []  # of a start that finds them all
    assert work.store.index().num_rows == ROUNDS * GROUPS_A_ROUND


def test_the_values_of_two_scorers_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    source = source_store(tmp_path, rewarded=0)
    lower = SampleStore(source, "sampled elsewhere")
    lower.append_scores(scores("reward", {"0-0": [1.0, 2.0]}, scorer_digest="another model"))
    with pytest.raises(
        UserError, match=r"another scorer under the name 'reward' .*another model; this one's is digest"
    ):
        start(tmp_path, World(evaluated=False), recipe(source))


def test_a_policy_that_is_not_the_store_s_prior_is_refused_and_nothing_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = StandInLearner.train_step

    async def another_policy_s(self: StandInLearner, step: int, batch: pa.RecordBatch) -> StepReport:
        report = await train_step(self, step, batch)
        return StepReport({**report.metrics, "kl_policy_prior": -31.5}, notes=[])

    monkeypatch.setattr(StandInLearner, "train_step", another_policy_s)
    settings = recipe(source_store(tmp_path))
    with pytest.raises(UserError, match=r"differ by 31\.5 nats per output; set policy\.model"):
        start(tmp_path, World(evaluated=False), settings)
    assert SampleStore(tmp_path / "run/store", "run").steps() == []


def test_later_rounds_of_the_source_are_left_out(tmp_path: Path) -> None:
    source = source_store(tmp_path, rewarded=8)
    settings = recipe(source)
    one_round = settings.model_copy(update={"algorithm": settings.algorithm.model_copy(update={"rounds": 1})})
    world = World(evaluated=False)
    own = start(tmp_path, world, one_round)
    assert own.counts() == {"groups": 0, "scores": 0, "steps": STEPS_A_ROUND}


@pytest.mark.parametrize(
    ("steps", "replay", "sentence"),
    [
        (0, True, "records no step; there is nothing to replay"),
        (0, False, r"has 0 groups of round 3 \(rounds count from 0\), fewer than algorithm.batch_prompts=2"),
    ],
)
def test_a_store_without_what_is_asked_for_is_refused(tmp_path: Path, steps: int, replay: bool, sentence: str) -> None:
    settings = recipe(source_store(tmp_path, steps=steps), replay=replay)
    more = settings.model_copy(update={"algorithm": settings.algorithm.model_copy(update={"rounds": 4})})
    with pytest.raises(UserError, match=sentence):
        read_stored_inputs(more, RunDirectory(tmp_path / "run"))


def test_a_lost_record_or_group_of_a_step_is_named(tmp_path: Path) -> None:
    store = SampleStore(source_store(tmp_path), "sampled elsewhere")
    with store.training():
        store.append_step(step(2, ["0-0", "0-1"]))
    settings = recipe(tmp_path / "source", replay=True)
    with pytest.raises(UserError, match="lacks the record of step 1"):
        read_stored_inputs(settings, RunDirectory(tmp_path / "run"))
    with store.training():
        store.append_step(step(1, ["0-0", "lost"]))
    with pytest.raises(UserError, match="lacks group lost, which its steps were trained on"):
        read_stored_inputs(settings, RunDirectory(tmp_path / "run"))


def test_a_run_never_trains_from_its_own_store(tmp_path: Path) -> None:
    source = source_store(tmp_path)
    directory = RunDirectory(tmp_path / "run")
    directory.root.mkdir()
    source.rename(directory.own_store)
    with pytest.raises(UserError, match="is the store of this run itself"):
        read_stored_inputs(recipe(directory.own_store), directory)
