"""`brain run`: check everything, start the services, run the conductor, and report."""

import asyncio
import contextlib
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

from brain_align.common.config.recipe import Recipe
from brain_align.common.durable import shortcomings
from brain_align.common.policies import ProposalModel
from brain_align.common.system.interruption import Terminated, asked_to_end
from brain_align.deploy.conductor.conductor import Conductor
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.monitor.run_monitor import RunMonitor
from brain_align.deploy.report.report import report_at_the_end
from brain_align.deploy.run.delivery import proposal_model
from brain_align.deploy.run.directory import RunDirectory, check_config, has_begun, save_config
from brain_align.deploy.run.resolve import in_ray_job, resolve, run_directory
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.run.start import Stopwatch, locked, own_log, reporter, with_smaller_passes
from brain_align.deploy.run.summary import finish, read_summary, show
from brain_align.deploy.run.trackers.open_trackers import open_trackers
from brain_align.deploy.services.cluster import ray_cluster, required_resources, started_services
from brain_align.deploy.services.make_services import make_services
from brain_align.deploy.services.services import Services

_LOG = logging.getLogger(__name__)
_GRACE_OF_A_JOB = 2.0  # seconds; `ray job stop` kills after three


def run_recipe(recipe: Recipe, console: PlainConsole) -> None:
    """Run a recipe to its end, or resume it; a finished run only shows its result.

    Raises:
        UserError: something is wrong with what the recipe names, or with its run directory.
        PipelineError: a service failed for good.
    """
    watch = Stopwatch()
    directory = run_directory(recipe)
    check_config(directory, recipe)
    if (summary := read_summary(directory)) is not None:
        console.print(f"{directory.root} holds this run, finished.")
        show(console, directory, summary)
        return
    report = reporter(console)
    with watch.stage("prepare") if recipe.prepare else contextlib.nullcontext():
        resolved = resolve(recipe, report, begun=directory if has_begun(directory) else None)
    from brain_align.deploy.run.preflight import check_inputs  # torch and transformers: only where they are needed

    with watch.stage("checks"):
        inputs = check_inputs(resolved.recipe, directory)
    for note in inputs.notes:
        report(note)
    with locked(directory):
        check_config(directory, recipe)
        save_config(directory, resolved.saved, {**resolved.facts(), **inputs.facts()}, inputs.template)
        for note in shortcomings():
            report(note)
        with own_log(directory):
            with watch.stage("checks"):
                model = proposal_model(resolved.recipe, directory, inputs.delivery)

            def start(recipe: Recipe) -> dict[str, Any]:
                plan = inputs.work(recipe, resolved.run_id, directory)
                with plan.store.training(report):
                    return Run(recipe, directory, plan, model, watch, console).to_the_end()

            summary = with_smaller_passes(start, resolved.recipe, report)
            report_at_the_end(directory, report)
    show(console, directory, summary)


@dataclass(frozen=True)
class Run:
    """One start of a run: its parts put together."""

    _recipe: Recipe
    _directory: RunDirectory
    _plan: RunPlan
    _model: ProposalModel
    _watch: Stopwatch
    _console: PlainConsole

    def to_the_end(self) -> dict[str, Any]:
        """Start the services, run the conductor, stop the services; return the summary."""
        trackers = open_trackers(self._recipe, self._directory, reporter(self._console))
        tracker = Tracker(self._recipe, self._directory.metrics, trackers, self._console)
        for message in (*self._plan.damaged, f"run directory {self._directory.root}; starting the services …"):
            self._console.print(message, soft_wrap=True)
        if self._plan.delivery is not None:
            _LOG.info("proposal versions get into samplers by %s", self._plan.delivery.sentence())
        tracker.recovered(self._plan.store)
        try:
            scorers = self._plan.started_scorers
            needs, services = required_resources(self._recipe, scorers), started_services(self._recipe, scorers)
            with ray_cluster(self._recipe.ray, needs, services=services):
                self._conduct(tracker)
        finally:
            tracker.close()
        return finish(self._recipe, self._directory, self._plan, self._watch.total(), tracker.warnings)

    def _conduct(self, tracker: Tracker) -> None:
        services = make_services(self._recipe, self._directory, self._model, self._plan.started_scorers)
        conductor = Conductor(self._recipe, self._plan, tracker, services)
        began = time.monotonic()
        try:
            with self._watch.stage("pipeline"):
                asyncio.run(self._run(conductor, services, tracker))
        finally:
            if tracker.started_at is not None:
                self._watch.add("start", tracker.started_at - began)  # a part of the pipeline's time
            self._watch.seconds.update(services.busy_seconds())
            services.kill()

    async def _run(self, conductor: Conductor, services: Services, tracker: Tracker) -> None:
        async with (
            RunMonitor(self._recipe, self._directory, self._plan, conductor.groups, services, tracker),
            asked_to_end() as asked,
        ):
            run = asyncio.create_task(conductor.run())
            ends: set[asyncio.Future[Any]] = {run, asked}
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if not run.done():
                    await self._stop(conductor, run, tracker)
                    raise Terminated(asked.result())
                run.result()
            finally:
                run.cancel()
                await asyncio.wait([run])

    async def _stop(self, conductor: Conductor, run: asyncio.Task[None], tracker: Tracker) -> None:
        """Save what has been trained, as far as there is time for it, and as the services are still there."""
        grace = min(self._recipe.timeouts.grace, _GRACE_OF_A_JOB if in_ray_job() else math.inf)
        stop = asyncio.create_task(conductor.stop())
        await asyncio.wait([stop, run], timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            stop.cancel()
            why = f"there was not enough time (timeouts.grace: {grace:g} s)"
        elif (error := stop.exception()) is not None:
            why = str(error)
        else:
            tracker.say(*(f"checkpoint of step {step}" for step in [stop.result()] if step is not None))
            return
        tracker.say(f"no checkpoint was written, so some steps are trained again: {why}")
