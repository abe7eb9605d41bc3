"""`brain run`: checks everything, brings the services up, runs the conductor, and reports."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import recipe_digest
from brain_align.common.policies import ProposalModel
from brain_align.deploy.conductor.conductor import Conductor
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.monitor.run_monitor import RunMonitor
from brain_align.deploy.run.directory import (
    RunDirectory,
    check_config,
    claimed,
    resolve_output,
    run_directory,
    save_config,
)
from brain_align.deploy.run.places import with_absolute_places
from brain_align.deploy.run.recipe_files import with_world
from brain_align.deploy.run.restarts import with_smaller_passes
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.run.stored_inputs import StoredInputs
from brain_align.deploy.run.summary import finish, read_summary, show
from brain_align.deploy.services.cluster import ray_cluster, required_resources
from brain_align.deploy.services.make_services import make_services
from brain_align.deploy.services.services import Services

if TYPE_CHECKING:
    from brain_align.deploy.run.preflight import Inputs


class Stopwatch:
    """Seconds by stage of this start of the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's duration to a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def total(self) -> dict[str, float]:
        """All stages, and the time since the start."""
        return {**self.seconds, "total": time.monotonic() - self._began}


def run_recipe(recipe: Recipe, console: Console) -> None:
    """Run a recipe to its end, or resume it; a finished run only shows its result.

    Raises:
        UserError: something is wrong with what the recipe names, or with its run directory.
        PipelineError: a service failed for good.
    """
    watch = Stopwatch()
    recipe = with_absolute_places(recipe)
    directory = run_directory(recipe)
    check_config(directory, recipe)
    if (summary := read_summary(directory)) is not None:
        console.print(f"{directory.root} holds this run, finished.", highlight=False)
        show(console, directory, summary)
        return
    world = prepared_world(recipe, watch, console)
    resolved = with_world(recipe, world)
    inputs = _check(resolved, directory, watch, console)
    with claimed(directory):
        check_config(directory, recipe)
        save_config(directory, recipe, {"world": world.name if world else None, **inputs.facts()})
        with own_log(directory):
            model = _proposal_model(resolved, directory, watch)

            def start(resolved: Recipe) -> dict[str, Any]:
                work = inputs.work(resolved, recipe_digest(recipe), directory)
                with work.store.training():
                    return Run(resolved, directory, work, model, watch, console).to_the_end()

            summary = with_smaller_passes(start, resolved, reporter(console))
    show(console, directory, summary)


def prepared_world(recipe: Recipe, watch: Stopwatch, console: Console) -> Path | None:
    """Build what the recipe's `prepare` section asks for, unless it is in the cache."""
    if recipe.prepare is None:
        return None
    from brain_align.deploy.worlds.build import ensure_world  # torch and transformers: only where they are needed

    with watch.stage("prepare"):
        return ensure_world(recipe.prepare, resolve_output(recipe.prepare.cache), recipe.data.path, reporter(console))


def reporter(console: Console) -> Callable[[str], None]:
    """What shows one line of text."""

    def report(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    return report


def _check(recipe: Recipe, directory: RunDirectory, watch: Stopwatch, console: Console) -> "Inputs | StoredInputs":
    from brain_align.deploy.run.preflight import check_inputs  # likewise

    with watch.stage("checks"):
        inputs = check_inputs(recipe, directory)
    for note in inputs.notes:
        console.print(note, highlight=False, soft_wrap=True)
    return inputs


def _proposal_model(recipe: Recipe, directory: RunDirectory, watch: Stopwatch) -> ProposalModel:
    if not recipe.sampler.replicas:
        return ProposalModel(recipe.policy.model, None)
    from brain_align.deploy.run.proposal_model import proposal_model  # likewise

    with watch.stage("checks"):
        return proposal_model(recipe.policy, directory)


@contextlib.contextmanager
def own_log(directory: RunDirectory) -> Iterator[None]:
    """What this process and its libraries log goes to the run's log file, not to the terminal."""
    path = directory.log("brain")
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


class Run:
    """One start of a run: its parts put together."""

    def __init__(
        self,
        recipe: Recipe,
        directory: RunDirectory,
        work: RunPlan,
        model: ProposalModel,
        watch: Stopwatch,
        console: Console,
    ) -> None:
        self._recipe = recipe
        self._directory = directory
        self._work = work
        self._model = model
        self._watch = watch
        self._console = console
        for message in work.damaged:
            console.print(message, highlight=False, soft_wrap=True)

    def to_the_end(self) -> dict[str, Any]:
        """Bring the services up, run the conductor, take them down; returns the summary.

        Raises:
            UserError, PipelineError: see `Conductor.run`.
        """
        tracker = Tracker(self._recipe.algorithm, self._directory.metrics, self._directory.tensorboard, self._console)
        self._console.print(
            f"run directory {self._directory.root}; starting the services …", highlight=False, soft_wrap=True
        )
        tracker.recovered(self._work.store)
        try:
            with ray_cluster(self._recipe.ray, required_resources(self._recipe, self._work.started_scorers)):
                self._conduct(tracker)
        finally:
            tracker.close()
        return finish(self._recipe, self._directory, self._work, self._watch.total())

    def _conduct(self, tracker: Tracker) -> None:
        services = make_services(self._recipe, self._directory, self._model, self._work.started_scorers)
        conductor = Conductor(self._recipe, self._work, tracker, services)
        try:
            with self._watch.stage("pipeline"):
                asyncio.run(self._run(conductor, services, tracker))
        finally:
            self._watch.seconds.update(services.busy_seconds())
            services.kill()

    async def _run(self, conductor: Conductor, services: Services, tracker: Tracker) -> None:
        async with RunMonitor(self._recipe, self._directory, self._work, conductor.groups, services, tracker):
            await conductor.run()
