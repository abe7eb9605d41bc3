"""Trains the cells of a comparison, several side by side, and takes up what an earlier start has left."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import PipelineError, first_failure
from brain_align.common.identity import digest
from brain_align.common.schemas import HUMAN
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.compare.examine.examination import ExaminedGroups, examine, read_examined
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.methods import Method
from brain_align.deploy.compare.plan.progress import chosen_rate
from brain_align.deploy.compare.plan.training_runs import Cell, Plan, cell_recipe, seed_recipe, seed_run_id
from brain_align.deploy.compare.results.run_results import is_finished, read_cell, write_examination, write_table
from brain_align.deploy.compare.train.first_outputs import write_first_outputs
from brain_align.deploy.compare.train.human_pairs import deal_pairs
from brain_align.deploy.compare.train.run_plan import cell_work
from brain_align.deploy.compare.train.seed_groups import SeedGroups, publish_prior, sample_groups
from brain_align.deploy.compare.train.services import SharedServices
from brain_align.deploy.conductor.conductor import Conductor
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.run.directory import RunDirectory, check_config, save_config
from brain_align.deploy.run.preflight import Inputs
from brain_align.deploy.run.resolve import ResolvedRecipe
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.run.start import Stopwatch
from brain_align.deploy.run.stored_source import open_source
from brain_align.deploy.run.summary import finish


@dataclass(frozen=True)
class Subject:
    """What is compared on.

    Attributes:
        base: the recipe that those of all cells are made of.
        inputs: its prompts.
        facts: what identifies them.
        directory: of the comparison.
    """

    base: ResolvedRecipe
    inputs: Inputs
    facts: dict[str, str | None]
    directory: ComparisonDirectory

    def groups(self, seed: int) -> SeedGroups:
        """The groups of a seed, sampled or not."""
        recipe = seed_recipe(self.base.saved, seed, self.directory)
        return SeedGroups(seed_run_id(recipe), self.base.derived(recipe).recipe, self.directory.seed(seed), self.inputs)


class Runner:
    """Trains all cells of a plan that are not finished.

    Every cell is a run of its own, with the conductor of any run, in one event loop; samplers and scorers are shared.

    Args:
        subject: what is compared on.
        plan: the cells.
        services: shared by all cells.
        parallel: how many cells are trained side by side.
        say: is told of each cell's end.

    Attributes:
        failed: why cells could not be trained, by name.
    """

    def __init__(
        self, subject: Subject, plan: Plan, services: SharedServices, parallel: int, say: Callable[[str], None]
    ) -> None:
        self.failed: dict[str, str] = {}
        self._subject = subject
        self._plan = plan
        self._services = services
        self._free = asyncio.Semaphore(parallel)
        self._say = say
        self._done = 0
        self._seeds: dict[int, asyncio.Task[SeedGroups]] = {}
        self._made: dict[Path, asyncio.Task[Any]] = {}  # what several cells read, by where it lies

    async def run(self) -> None:
        """Train everything. A cell that fails is noted, and the others go on.

        Raises:
            PipelineError: a shared service failed for good, or the groups of a seed could not be made.
            UserError: something that the user must put right came up.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                before: asyncio.Task[SeedGroups] | None = None
                for seed in self._plan.request.seeds:  # one after the other, ahead of the cells that need them
                    before = self._seeds[seed] = tasks.create_task(self._sample_after(before, seed))
                tasks.create_task(self._services.start())
                for method in self._plan.request.methods:
                    tasks.create_task(self._train_method(method))
        except ExceptionGroup as failures:
            raise first_failure(failures) from failures

    async def _train_method(self, method: Method) -> None:
        """The grid; then, at the best learning rate, the other seeds; the same with smaller groups after that."""
        for n in self._plan.sizes(method):
            grid = self._plan.grid(method, n)
            await asyncio.gather(*map(self._train, grid))
            rate = chosen_rate(self._subject.directory, grid)
            if rate is not None:
                await asyncio.gather(*map(self._train, self._plan.chosen(method, n, rate)[1:]))

    async def _train(self, cell: Cell) -> None:
        """One cell, unless an earlier start has finished it."""
        directory = self._subject.directory
        if is_finished(directory, cell):
            self._done += 1
            return
        groups = await self._seeds[cell.seed]
        async with self._free:
            try:
                await self._train_on(cell, groups)
            except PipelineError as error:
                self._services.raise_failure()  # no cell's own: all others would fail by it, too
                self.failed[cell.name] = str(error)
        self._done += 1
        result = read_cell(directory, cell)
        outcome = self.failed[cell.name] if result is None else result.sentence()
        self._say(f"[{self._done}/{self._plan.count()}] {cell.name}: {outcome}")

    async def _train_on(self, cell: Cell, groups: SeedGroups) -> None:
        subject, watch = self._subject, Stopwatch()
        pairs, directory = self._plan.request.pairs, subject.directory.cell(cell.name)
        resolved = subject.base.derived(cell_recipe(subject.base.saved, cell, subject.directory, pairs))
        recipe = resolved.recipe
        check_config(directory, resolved.saved)
        save_config(directory, resolved.saved, subject.facts)
        below = await self._groups_below(recipe, cell, groups)
        work = await asyncio.to_thread(cell_work, recipe, resolved.run_id, directory, groups, below)
        with work.store.training():
            await self._conduct(recipe, directory, work, watch)
        outcomes = subject.directory.outcomes(cell.name)
        best = await asyncio.to_thread(_write_results, recipe, directory, work, watch, outcomes)
        trains_on_groups = recipe.objective.reward != HUMAN
        examination = await examine(
            self._services.examiner, directory, best, await self._examined_groups(groups), trained=trains_on_groups
        )
        write_examination(subject.directory.examination(cell.name), examination)

    async def _conduct(self, recipe: Recipe, directory: RunDirectory, work: RunPlan, watch: Stopwatch) -> None:
        services = self._services.of_run(recipe, directory)
        tracker = _quiet_tracker(recipe, directory)
        tracker.recovered(work.store)
        try:
            with watch.stage("pipeline"):
                await Conductor(recipe, work, tracker, services).run()
        finally:
            watch.seconds["training"] = services.learner.busy_seconds
            services.learner.kill()
            tracker.close()

    async def _groups_below(self, recipe: Recipe, cell: Cell, groups: SeedGroups) -> SampleStore:
        """What the cell trains on: the seed's groups, with as many outputs as it asks for, or human pairs.

        Each cell opens the store for itself; what is copied into one is copied once for all cells of the seed.
        """
        directory = self._subject.directory
        if recipe.objective.reward == HUMAN:
            assert recipe.store.uri is not None, "a method that trains on pairs has their store"
            place, run_id = directory.pairs(cell.seed), digest("pairs", recipe.store.uri, cell.seed)
            await self._once(place, _copy_pairs, recipe, cell.seed, place, run_id)
        elif cell.n < self._plan.n:
            place, run_id = directory.first_outputs(cell.seed, cell.n), f"{groups.run_id}-first-{cell.n}"
            await self._once(place, _copy_first_outputs, groups, cell.n, place, run_id)
        else:
            return await asyncio.to_thread(groups.open)
        return await asyncio.to_thread(SampleStore, place, run_id, read_only=True)

    async def _examined_groups(self, groups: SeedGroups) -> ExaminedGroups:
        """Read once for all cells of a seed."""
        return await self._once(groups.directory.root, read_examined, groups)

    async def _once(self, key: Path, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of a path gives, called once in a thread: stores are not read in the event loop."""
        if key not in self._made:
            self._made[key] = asyncio.create_task(asyncio.to_thread(function, *arguments))
        return await self._made[key]

    # -- the groups of a seed ----------------------------------------------------------------------------------------

    async def _sample_after(self, before: "asyncio.Task[SeedGroups] | None", seed: int) -> SeedGroups:
        if before is not None:
            await before
        groups = self._subject.groups(seed)
        done = self._subject.directory.prior_examination(seed)
        if not done.exists():
            await self._sample(groups, done)
        return groups

    async def _sample(self, groups: SeedGroups, done: Path) -> None:
        recipe, directory = groups.recipe, groups.directory
        saved = seed_recipe(self._subject.base.saved, recipe.seed, self._subject.directory)
        check_config(directory, saved)
        save_config(directory, saved, self._subject.facts)
        services = self._services.of_run(recipe, directory)
        async with self._free:  # a learner takes the place of a cell's
            await publish_prior(recipe, services)
        tracker = _quiet_tracker(recipe, directory)
        try:
            evaluation = await sample_groups(groups, services, tracker)
        finally:
            tracker.close()
        result = evaluation.result("test", 0)
        self._say(
            f"seed {recipe.seed}: {len(groups.training_requests())} requests sampled and scored; the prior wins "
            f"{result.train_rm_win_rate or 0:.1f} % of test prompts, mean reward {result.mean_reward:.3f}"
        )
        write_table(self._subject.directory.prior_outcomes(recipe.seed), evaluation.outcomes("test", 0))
        examined = await self._examined_groups(groups)
        write_examination(done, await examine(self._services.examiner, directory, 0, examined, trained=True))


def _write_results(recipe: Recipe, directory: RunDirectory, work: RunPlan, watch: Stopwatch, outcomes: Path) -> int:
    """Returns the best version."""
    assert work.evaluation is not None, "cells are evaluated"
    best = work.evaluation.best_version()
    finish(recipe, directory, work, watch.total())
    write_table(outcomes, work.evaluation.outcomes("test", best))
    return best


def _copy_first_outputs(groups: SeedGroups, n: int, place: Path, run_id: str) -> None:
    write_first_outputs(groups.open(), SampleStore(place, run_id), n)


def _copy_pairs(recipe: Recipe, seed: int, place: Path, run_id: str) -> None:
    assert recipe.store.uri is not None, "a method that trains on pairs has their store"
    deal_pairs(open_source(recipe.store.uri).store, SampleStore(place, run_id), recipe.algorithm, seed)


def _quiet_tracker(recipe: Recipe, directory: RunDirectory) -> Tracker:
    return Tracker(recipe.algorithm, directory.metrics, directory.tensorboard, Console(quiet=True))
