"""All runs of a comparison with stand-ins for the actors: what is trained and shared, and what a failure costs."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.training import LogprobsSection
from brain_align.common.data.prompts import PromptSet
from brain_align.common.durable import write_file
from brain_align.common.errors import PipelineError, UserError
from brain_align.common.policies import PolicyRegistry
from brain_align.common.requests import Prompt
from brain_align.common.schemas import HUMAN, PRIOR
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.compare.compare import check_recipe
from brain_align.deploy.compare.examine.examiner import Likelihoods
from brain_align.deploy.compare.plan.layout import ComparisonDirectory, save_comparison
from brain_align.deploy.compare.plan.methods import Method, method_recipe, parse_method
from brain_align.deploy.compare.plan.request import Request
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan
from brain_align.deploy.compare.reading import write_answers
from brain_align.deploy.compare.results.choices import unfinished
from brain_align.deploy.compare.results.comparison import collect
from brain_align.deploy.compare.train.derived_stores import write_first_outputs
from brain_align.deploy.compare.train.runner import ComparisonSetup, Runner
from brain_align.deploy.compare.train.services import SharedServices, comparison_resources, fitting
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.preflight import Inputs
from brain_align.deploy.run.resolve import with_world
from brain_align.deploy.services.services import Services
from brain_align.learner.step_report import StepReport
from tests.stand_ins import LocalActor, LocalLearner, LocalSampler, LocalScorer
from tests.unit.factories import PROBE, groups, recipe_settings, scores

ROUNDS, UPDATES = 2, 2
RATES = (1e-4, 1e-3)


class StandInLearner(LocalLearner):
    """Publishes an empty file a version; breaks at the learning rates that it is told."""

    def __init__(self, recipe: Recipe, directory: RunDirectory, broken: set[float]) -> None:
        super().__init__()
        self.rate, self.broken = recipe.learner.learning_rate, broken
        self.registry = PolicyRegistry(directory.policies)
        self.killed = self.busy = False

    async def train_step(self, step: int, batch: pa.RecordBatch) -> StepReport:
        self.busy = True
        if self.rate in self.broken:
            raise PipelineError(f"the loss at {self.rate} is not finite")
        return await super().train_step(step, batch)

    async def publish(self, version: int, step: int) -> None:
        def write(place: Path) -> None:
            write_file(place / "adapter_config.json", '{"r": 8}')
            write_file(place / "adapter_model.safetensors", "")

        self.registry.publish(version, step, write, PROBE)

    def kill(self) -> None:
        self.killed = True


class StandInExaminer(LocalActor):
    """Says the same of every version."""

    async def examine(self, _policies: str, _version: int, groups: pa.Table) -> Likelihoods:
        return Likelihoods(
            [np.array([-1.0, -2.0])] * groups.num_rows, np.ones(groups.num_rows), np.ones(groups.num_rows)
        )


class StandInServices:
    """Pools of actors in this process, which all runs share, and a learner for each."""

    def __init__(self, home: RunDirectory, broken: set[float]) -> None:
        self.broken = broken
        self.learners: list[StandInLearner] = []
        self.proposals: list[Pool] = []
        self.examiner = Pool("examiner", 1, lambda *_: StandInExaminer(), home.log, PoolSettings(start=5))
        self.samplers = Pool("sampler", 1, lambda *_: LocalSampler(), home.log, PoolSettings(start=5))
        self.scorers = {
            name: Pool(name, 1, lambda *_, name=name: LocalScorer(name), home.log, PoolSettings(start=5))
            for name in ("prior", "reward")
        }

    async def start(self) -> None:
        await self.examiner.start()

    def of_run(self, recipe: Recipe, directory: RunDirectory, *, trains: bool = True) -> Services:
        self.learners.append(StandInLearner(recipe, directory, self.broken))
        scorers = dict(self.scorers)
        if trains and recipe.logprobs.proposal == "recomputed":
            self.proposals.append(
                Pool("proposal", 1, lambda *_: LocalScorer("proposal"), directory.log, PoolSettings(start=5))
            )
            scorers["proposal"] = self.proposals[-1]
        return Services(self.samplers, scorers, self.learners[-1])

    def release(self, services: Services) -> None:
        services.learner.kill()
        for pool in self.proposals:
            pool.kill()

    def raise_failure(self) -> None:
        for pool in (self.examiner, self.samplers, *self.scorers.values()):
            pool.raise_failure()

    def kill(self) -> None:
        for pool in (self.examiner, self.samplers, *self.scorers.values()):
            pool.kill()


def prompts(kind: str, count: int) -> list[Prompt]:
    return [Prompt(f"{kind}{number}", "text", (1,), "gold") for number in range(count)]


@pytest.fixture
def setup(tmp_path: Path) -> ComparisonSetup:
    algorithm = {"rounds": ROUNDS, "prompts_per_round": 8, "updates_per_round": UPDATES, "batch_prompts": 4}
    recipe = Recipe.model_validate(
        recipe_settings(algorithm=algorithm, sampling={"n": 4}, evaluation={"every_rounds": 2, "examples": 0})
    )
    directory = ComparisonDirectory(tmp_path / "out")
    train = cast(PromptSet, prompts("t", 24))  # any sequence will do
    inputs = Inputs(train, {"validation": prompts("v", 4), "test": prompts("e", 6)}, [])
    facts: dict[str, str | None] = {"prompts": "a digest"}
    save_comparison(directory, recipe, facts)
    return ComparisonSetup(with_world(recipe, None), inputs, facts, directory)


def plan(
    *methods: str, seeds: tuple[int, ...] = (0, 1), sizes: tuple[int, ...] = (), pairs: Path | None = None
) -> ComparisonPlan:
    asked = tuple(map(parse_method, methods))
    return ComparisonPlan(
        Request(asked, seeds, RATES, sizes, (methods[0],) if sizes else (), str(pairs) if pairs else None), 4
    )


def train(
    setup: ComparisonSetup, work: ComparisonPlan, *, broken: frozenset[float] = frozenset()
) -> tuple[Runner, StandInServices]:
    async def run() -> tuple[Runner, StandInServices]:
        services = StandInServices(setup.directory.services, set(broken))
        runner = Runner(setup, work, cast(SharedServices, services), 2, lambda _line: None)
        try:
            await asyncio.wait_for(runner.run(), 60)
        finally:
            services.kill()
        return runner, services

    return asyncio.run(run())


def runs(setup: ComparisonSetup) -> set[str]:
    return {path.parent.name for path in (setup.directory.root / "cells").glob("*/examination.json")}


def steps(setup: ComparisonSetup, run: str) -> list[list[str]]:
    store = SampleStore(setup.directory.run(run).own_store, None, read_only=True)
    return [row["group_ids"] for row in store.steps()]


def test_all_cells_are_trained_on_the_same_groups(setup: ComparisonSetup) -> None:
    work = plan("dpo-sft", "brain", sizes=(2,))
    runner, services = train(setup, work)
    assert runner.failed == {}
    rate = "lr0.0001"  # all are equally good here, so that the smaller one is chosen
    grid = {f"{method}-{one}-seed0-n4" for method in ("dpo-sft", "brain") for one in ("lr0.0001", "lr0.001")}
    later = {
        f"dpo-sft-{rate}-seed1-n4",
        f"brain-{rate}-seed1-n4",
        f"dpo-sft-{rate}-seed0-n2",
        "dpo-sft-lr0.001-seed0-n2",  # smaller groups choose their rate for themselves
        f"dpo-sft-{rate}-seed1-n2",
    }
    assert runs(setup) == grid | later
    assert not unfinished(setup.directory, work)
    for seed in (0, 1):
        offline, online = (steps(setup, f"{method}-{rate}-seed{seed}-n4") for method in ("dpo-sft", "brain"))
        assert offline[:UPDATES] == online[:UPDATES]
        assert not {name for step in offline for name in step} & {name for step in online[UPDATES:] for name in step}
    assert steps(setup, f"dpo-sft-{rate}-seed0-n4") == steps(setup, f"dpo-sft-{rate}-seed0-n2")
    assert all(learner.killed for learner in services.learners)
    comparison = collect(setup.directory, setup.base.recipe, work, {})
    assert [figures.seeds for figures in comparison.methods.values()] == [[0, 1], [0, 1]]


def test_dpo_trains_on_human_pairs_and_is_evaluated_like_the_others(setup: ComparisonSetup, tmp_path: Path) -> None:
    people = SampleStore(tmp_path / "pairs", "people")
    names = [f"pair {number}" for number in range(20)]
    people.append_groups(groups(*names))
    people.append_scores(scores(HUMAN, {name: [1.0, 0.0] for name in names}, gold_value=None))
    work = plan("dpo", "brain", pairs=tmp_path / "pairs")
    runner, _ = train(setup, work)
    assert runner.failed == {}
    dealt = SampleStore(setup.directory.pairs(0), None, read_only=True)
    trained = {name for step in steps(setup, "dpo-lr0.0001-seed0-n4") for name in step}
    assert trained == set(dealt.group_ids) and len(trained) == ROUNDS * 8
    assert trained == set(
        SampleStore(setup.directory.run("dpo-lr0.001-seed0-n4").own_store, None, read_only=True)
        .scores(sorted(trained), PRIOR)["group_id"]
        .to_pylist()
    ), "their log p was missing"
    methods = collect(setup.directory, setup.base.recipe, work, {}).methods
    assert methods["dpo"].examination.trained_chosen_drift is None, "it trained on other groups"
    assert methods["brain"].examination.trained_chosen_drift is not None
    assert methods["dpo"].mean_reward == methods["brain"].mean_reward == 1.0  # the reward model's, not people's


def test_more_seeds_and_methods_add_cells_and_leave_the_others_alone(setup: ComparisonSetup) -> None:
    train(setup, plan("brain", seeds=(0,)))
    before = {name: setup.directory.outcomes(name).stat().st_mtime_ns for name in runs(setup)}
    _, services = train(setup, plan("brain", "rso", seeds=(0, 1)))
    assert {name: setup.directory.outcomes(name).stat().st_mtime_ns for name in before} == before
    assert len(services.learners) == 1 + 1 + 3  # the new seed's prior, brain on it, and rso's two rates and second seed


def test_recomputed_proposals_are_each_run_s_own(setup: ComparisonSetup) -> None:
    recipe = setup.base.saved.model_copy(update={"logprobs": LogprobsSection(proposal="recomputed")})
    setup = replace(setup, base=with_world(recipe, None))
    runner, services = train(setup, plan("brain", "dpo-sft", seeds=(0,)))
    assert runner.failed == {}
    assert len(services.proposals) == 1 + 2 * len(RATES), "of the seed's groups, and of each run"
    own, shared = (
        SampleStore(place.own_store, None, read_only=True)
        for place in (setup.directory.run("brain-lr0.001-seed0-n4"), setup.directory.seed(0))
    )
    for store in (own, shared):
        assert store.counts()["groups"] and not store.unscored("proposal")


def test_versions_within_kl_budgets_are_tested_once(setup: ComparisonSetup) -> None:
    request = replace(plan("brain", "dpo-sft").request, kl_budgets=(50.0,), read=2)
    work = ComparisonPlan(request, 4)
    train(setup, plan("brain", "dpo-sft"))
    assert unfinished(setup.directory, work), "of equal versions the prior is best, which is none of a method's"
    runner, services = train(setup, work)
    assert runner.failed == {} and not unfinished(setup.directory, work)
    assert not any(learner.busy for learner in services.learners), "nothing is trained"
    (budget,) = collect(setup.directory, setup.base.recipe, work, {}).budgets
    assert {label: (one.versions, one.seeds) for label, one in budget.methods.items()} == {
        "brain": ([2, 2], [0, 1]),
        "dpo-sft": ([2, 2], [0, 1]),
    }
    tested = setup.directory.tested("brain-lr0.0001-seed0-n4", 2)
    assert json.loads(tested.read_text())["prompts"] == 6
    before = tested.stat().st_mtime_ns
    assert train(setup, work)[1].learners == [] and tested.stat().st_mtime_ns == before
    write_answers(setup, work, {})
    texts, key = setup.directory.answers.read_text().split("### Key")
    assert "\n## 2\n" in texts and "\n## 3\n" not in texts
    assert key.count("| dpo-sft | 1.000 |") == key.count("| prior | 1.000 |") == 2


def test_a_rate_that_breaks_is_named_and_costs_only_itself(setup: ComparisonSetup) -> None:
    work = plan("brain", "rso")
    runner, _ = train(setup, work, broken=frozenset({1e-4}))
    assert set(runner.failed) == {"brain-lr0.0001-seed0-n4", "rso-lr0.0001-seed0-n4"}
    assert "the loss at 0.0001 is not finite" in runner.failed["rso-lr0.0001-seed0-n4"]
    comparison = collect(setup.directory, setup.base.recipe, work, runner.failed)
    assert {figures.learning_rate for figures in comparison.methods.values()} == {1e-3}
    assert unfinished(setup.directory, work)
    again, services = train(setup, work)
    assert again.failed == {} and not unfinished(setup.directory, work)
    assert len(services.learners) == 4  # the two that had failed; at 1e-4, now the best, both have a second seed


def test_a_method_all_of_whose_rates_break_is_left_out(setup: ComparisonSetup) -> None:
    work = plan("brain", seeds=(0,))
    runner, _ = train(setup, work, broken=frozenset(RATES))
    assert len(runner.failed) == len(RATES)
    assert collect(setup.directory, setup.base.recipe, work, runner.failed).methods == {}


def test_a_shared_service_that_fails_for_good_ends_the_comparison(
    setup: ComparisonSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(setup, plan("brain", seeds=(0,)))
    failure = PipelineError("No scorer is left")

    class LostScorer(StandInServices):
        def of_run(self, recipe: Recipe, directory: RunDirectory, *, trains: bool = True) -> Services:
            self.scorers["reward"]._fail(failure)
            return super().of_run(recipe, directory, trains=trains)

    monkeypatch.setitem(globals(), "StandInServices", LostScorer)
    with pytest.raises(PipelineError, match="No scorer is left"):
        train(setup, plan("brain", "rso", seeds=(0,)))
    monkeypatch.undo()
    runner, _ = train(setup, plan("brain", "rso", seeds=(0,)))
    assert runner.failed == {}


def test_what_cells_share_is_read_once(setup: ComparisonSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(source: SampleStore, target: SampleStore, n: int) -> None:
        calls.append(n)
        write_first_outputs(source, target, n)

    monkeypatch.setattr("brain_align.deploy.compare.train.runner.write_first_outputs", counted)
    work = ComparisonPlan(
        Request((parse_method("brain"), parse_method("dpo-sft")), (0,), (1e-4,), (2,), ("brain", "dpo-sft")), 4
    )
    runner, _ = train(setup, work)
    assert runner.failed == {} and calls == [2]


def test_a_loss_that_cannot_be_imported_is_refused_before_anything_starts(setup: ComparisonSetup) -> None:
    check_recipe(setup.base.recipe, plan("brain").request)
    with pytest.raises(UserError, match=r"tests\.no_such_losses"):
        check_recipe(setup.base.recipe, plan("brain", "tests.no_such_losses:mine").request)


def test_as_many_cells_are_trained_side_by_side_as_fit(setup: ComparisonSetup) -> None:
    needs = comparison_resources(setup.base.recipe, 2)
    assert fitting(setup.base.recipe, 2, needs) == 2
    assert fitting(setup.base.recipe, 2, {**needs, "CPU": needs["CPU"] - 0.01}) == 1
    assert fitting(setup.base.recipe, 2, {}) == 1


def test_smaller_groups_are_tried_before_anything_starts(
    setup: ComparisonSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses_two(base: Recipe, method: Method, **sections: Any) -> Recipe:
        if sections.get("sampling") == {"n": 2}:
            raise UserError(f"{method.label} needs more than 2 outputs")
        return method_recipe(base, method, **sections)

    monkeypatch.setattr("brain_align.deploy.compare.compare.method_recipe", refuses_two)
    check_recipe(setup.base.recipe, plan("dpo-sft", "brain").request)
    with pytest.raises(UserError, match="dpo-sft needs more than 2 outputs"):
        check_recipe(setup.base.recipe, plan("dpo-sft", "brain", sizes=(2,)).request)
