"""Trains the runs of a comparison, several side by side, and resumes where an earlier start stopped."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import PipelineError, first_failure
from brain_align.common.identity import digest
from brain_align.common.schemas import HUMAN
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.compare.examine.examiner import ExaminedGroups, examine
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.methods import Method
from brain_align.deploy.compare.plan.training_runs import (
    ComparisonPlan,
    TrainingRun,
    run_recipe,
    seed_recipe,
    seed_run_id,
)
from brain_align.deploy.compare.results.choices import Choice, chosen_rates, tested_name, untested
from brain_align.deploy.compare.results.run_results import (
    is_finished,
    read_finished,
    write_examination,
    write_table,
)
from brain_align.deploy.compare.train.derived_stores import deal_pairs, write_first_outputs
from brain_align.deploy.compare.train.progress import Progress
from brain_align.deploy.compare.train.seed_groups import SeedGroups, make_run_plan, publish_prior, sample_groups
from brain_align.deploy.compare.train.services import SharedServices
from brain_align.deploy.compare.train.tested_versions import FinishedWork, evaluate_versions
from brain_align.deploy.conductor.conductor import Conductor
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import RunDirectory, check_config, save_config
from brain_align.deploy.run.preflight import Inputs
from brain_align.deploy.run.resolve import ResolvedRecipe
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.run.start import Stopwatch, reporter
from brain_align.deploy.run.stored_source import open_source
from brain_align.deploy.run.summary import finish
from brain_align.deploy.run.trackers.open_trackers import Trackers, tensorboard

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class ComparisonSetup:
    """The base recipe and the inputs that all training runs share; `facts` identify the inputs."""

    base: ResolvedRecipe
    inputs: Inputs
    facts: dict[str, str | None]
    directory: ComparisonDirectory

    def groups(self, seed: int) -> SeedGroups:
        """Return the groups of a seed, sampled or not."""
        recipe = seed_recipe(self.base.saved, seed, self.directory)
        return SeedGroups(seed_run_id(recipe), self.base.derived(recipe).recipe, self.directory.seed(seed), self.inputs)


class Runner:
    """Trains the runs of a plan that are not finished.

    Each has a conductor of its own, as any run has, all in one event loop; samplers and scorers are shared. `parallel`
    runs are trained side by side, and `say` is called with one line when a run ends.
    """

    def __init__(
        self,
        setup: ComparisonSetup,
        plan: ComparisonPlan,
        services: SharedServices,
        parallel: int,
        say: Callable[[str], None],
    ) -> None:
        self.failed: dict[str, str] = {}  # the reason why a run could not be trained, by its name
        self._setup = setup
        self._plan = plan
        self._services = services
        self._free = asyncio.Semaphore(parallel)
        self._say = say
        self._progress = Progress(setup.directory, plan, parallel)
        self._seeds: dict[int, asyncio.Task[SeedGroups]] = {}
        self._made: dict[Path, asyncio.Task[Any]] = {}  # what several runs read, by its path

    async def run(self) -> None:
        """Train everything. A run that fails is recorded in `failed`, and the others continue.

        Raises:
            PipelineError: a shared service failed for good, or the groups of a seed could not be sampled.
            UserError: something that the user must fix came up.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                before: asyncio.Task[SeedGroups] | None = None
                for seed in self._plan.request.seeds:  # one after the other, ahead of the runs that need them
                    before = self._seeds[seed] = tasks.create_task(self._sample_after(before, seed))
                tasks.create_task(self._services.examiner.start())  # the other pools start when a run needs them
                for method in self._plan.request.methods:
                    tasks.create_task(self._train_method(method))
        except ExceptionGroup as failures:
            raise first_failure(failures) from failures

    async def _train_method(self, method: Method) -> None:
        """Train the grid; then, at the chosen learning rates, the other seeds; then the same with smaller groups.

        In the end, the versions that KL budgets choose are evaluated on test prompts.
        """
        for n in self._plan.sizes(method):
            await asyncio.gather(*map(self._train, self._plan.grid(method, n)))
            rates = chosen_rates(self._setup.directory, self._plan, method, n)
            others = [run for rate in rates for run in self._plan.chosen(method, n, rate)[1:]]
            await asyncio.gather(*map(self._train, others))
        lacking = untested(self._setup.directory, self._plan, method)
        await asyncio.gather(*(self._test(chosen) for chosen in lacking.values()))

    async def _train(self, run: TrainingRun) -> None:
        """Train one run, unless an earlier start has finished it."""
        directory = self._setup.directory
        if is_finished(directory, run):
            return
        groups = await self._seeds[run.seed]
        if await self._attempt(run.name, lambda: self._train_on(run, groups)):
            result = read_finished(directory, run)
            assert result is not None, "it has just been trained"
            self._say(f"{run.name}: {result.sentence()}")
        self._say(self._progress.sentence())

    async def _test(self, chosen: list[Choice]) -> None:
        """Evaluate versions of one run that KL budgets have chosen on test prompts."""
        run, versions = chosen[0].finished.run, sorted({choice.version for choice in chosen})
        groups = await self._seeds[run.seed]
        if await self._attempt(tested_name(run.name), lambda: self._test_on(run, versions, groups)):
            self._say(f"{run.name}: versions {', '.join(map(str, versions))} evaluated on test prompts")

    async def _attempt(self, name: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Do a piece of work in one of the places; return whether it succeeded, and note the reason if not."""
        async with self._free:
            try:
                await work()
            except PipelineError as error:
                self._services.raise_failure()  # which would fail all other runs, too
                self.failed[name] = str(error)
                self._say(f"{name} failed: {error}")
        return name not in self.failed

    async def _test_on(self, run: TrainingRun, versions: list[int], groups: SeedGroups) -> None:
        directory = self._setup.directory.run(run.name)
        recipe, run_plan = await self._run_plan(run, groups)
        tracker = _quiet_tracker(recipe, directory)
        try:
            work = FinishedWork(run, recipe, run_plan)
            services = self._services.of_run(recipe, directory, trains=False)
            await evaluate_versions(work, versions, self._setup.directory, services, tracker)
        finally:
            tracker.close()

    async def _run_plan(self, run: TrainingRun, groups: SeedGroups) -> tuple[Recipe, RunPlan]:
        setup, directory = self._setup, self._setup.directory.run(run.name)
        pairs = self._plan.request.pairs
        resolved = setup.base.derived(run_recipe(setup.base.saved, run, setup.directory, pairs))
        recipe = resolved.recipe
        check_config(directory, resolved.saved)
        save_config(directory, resolved.saved, setup.facts, setup.inputs.template)
        below = await self._groups_below(recipe, run, groups)
        return recipe, await asyncio.to_thread(make_run_plan, recipe, resolved.run_id, directory, groups, below)

    async def _train_on(self, run: TrainingRun, groups: SeedGroups) -> None:
        setup, watch, directory = self._setup, Stopwatch(), self._setup.directory.run(run.name)
        recipe, run_plan = await self._run_plan(run, groups)
        with run_plan.store.training():
            warnings = await self._conduct(recipe, directory, run_plan, watch)
        outcomes = setup.directory.outcomes(run.name)
        await asyncio.to_thread(finish, recipe, directory, run_plan, watch.total(), warnings)
        best = await asyncio.to_thread(_write_outcomes, run_plan, outcomes)
        trains_on_groups = recipe.objective.reward != HUMAN
        examination = await examine(
            self._services.examiner, directory, best, await self._examined_groups(groups), trained=trains_on_groups
        )
        write_examination(setup.directory.examination(run.name), examination)

    async def _conduct(self, recipe: Recipe, directory: RunDirectory, run_plan: RunPlan, watch: Stopwatch) -> list[str]:
        """Train the run; return the warnings that its guards gave."""
        services = self._services.of_run(recipe, directory)
        tracker = _quiet_tracker(recipe, directory)
        tracker.recovered(run_plan.store)
        try:
            with watch.stage("pipeline"):
                await Conductor(recipe, run_plan, tracker, services).run()
        finally:
            watch.seconds["training"] = services.learner.busy_seconds
            self._services.release(services)
            tracker.close()
        return tracker.warnings

    async def _groups_below(self, recipe: Recipe, run: TrainingRun, groups: SeedGroups) -> SampleStore:
        """Open the store that the run trains on: the seed's groups, with as many outputs as it takes, or human pairs.

        Each run opens the store for itself; a derived store is written once for all runs of the seed.
        """
        directory = self._setup.directory
        if recipe.objective.reward == HUMAN:
            uri = recipe.store.uri
            assert uri is not None, "a method that trains on pairs has their store"
            path, run_id = directory.pairs(run.seed), digest("pairs", uri, run.seed)
            await self._once(
                path,
                lambda: deal_pairs(open_source(uri).store, SampleStore(path, run_id), recipe.algorithm, run.seed),
            )
        elif run.n < self._plan.n:
            path, run_id = directory.first_outputs(run.seed, run.n), f"{groups.run_id}-first-{run.n}"
            await self._once(path, lambda: write_first_outputs(groups.open(), SampleStore(path, run_id), run.n))
        else:
            return await asyncio.to_thread(groups.open)
        return await asyncio.to_thread(SampleStore, path, run_id, read_only=True)

    async def _examined_groups(self, groups: SeedGroups) -> ExaminedGroups:
        return await self._once(groups.directory.root, groups.read_examined)

    async def _once(self, key: Path, read: Callable[[], _Read]) -> _Read:
        """Return what `read` returns, called once per key in a thread: stores are not read in the event loop."""
        if key not in self._made:
            self._made[key] = asyncio.create_task(asyncio.to_thread(read))
        result: _Read = await self._made[key]
        return result

    # -- the groups of a seed ----------------------------------------------------------------------------------------

    async def _sample_after(self, before: "asyncio.Task[SeedGroups] | None", seed: int) -> SeedGroups:
        if before is not None:
            await before
        groups = self._setup.groups(seed)
        done = self._setup.directory.prior_examination(seed)
        if not done.exists():
            await self._sample(groups, done)
        return groups

    async def _sample(self, groups: SeedGroups, done: Path) -> None:
        recipe, directory = groups.recipe, groups.directory
        saved = seed_recipe(self._setup.base.saved, recipe.seed, self._setup.directory)
        check_config(directory, saved)
        save_config(directory, saved, self._setup.facts, self._setup.inputs.template)
        services = self._services.of_run(recipe, directory)
        async with self._free:  # its learner takes the room of a run's
            await publish_prior(recipe, services)
        tracker = _quiet_tracker(recipe, directory)
        try:
            evaluation = await sample_groups(groups, services, tracker)
        finally:
            self._services.release(services)
            tracker.close()
        result = evaluation.result("test", 0)
        self._say(
            f"seed {recipe.seed}: groups of {len(groups.training_requests())} requests sampled and scored; the prior "
            f"wins on {result.train_rm_win_rate or 0:.1f} % of test prompts, mean reward {result.mean_reward:.3f}"
        )
        write_table(self._setup.directory.prior_outcomes(recipe.seed), evaluation.outcomes("test", 0))
        examined = await self._examined_groups(groups)
        write_examination(done, await examine(self._services.examiner, directory, 0, examined, trained=True))


def _write_outcomes(run_plan: RunPlan, outcomes: Path) -> int:
    """Write the test outcomes of a finished run; return its best version."""
    assert run_plan.evaluation is not None, "a comparison's runs are evaluated"
    best = run_plan.evaluation.best_version()
    write_table(outcomes, run_plan.evaluation.outcomes("test", best))
    return best


def _quiet_tracker(recipe: Recipe, directory: RunDirectory) -> Tracker:
    console = PlainConsole(quiet=True)
    files = tensorboard(directory.tensorboard, reporter(console))  # other trackers are for runs of their own
    return Tracker(recipe, directory.metrics, Trackers([files]), console)
