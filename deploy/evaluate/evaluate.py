"""`brain evaluate`: sample from versions, adapters and models on held-out prompts, score the outputs, and compare them.

WHAT… -> candidates -> prompts -> what the store lacks -> samplers, scorers -> store -> figures
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from brain_align.common.config.recipe import Recipe
from brain_align.common.data.text_groups import trial_groups
from brain_align.common.durable import write_file
from brain_align.common.store.commit_queue import CommitQueue
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.conductor.group_scorer import scorers_at_work
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.evaluate.candidates import recipe_name
from brain_align.deploy.evaluate.generation import Generation
from brain_align.deploy.evaluate.job import Job, Options, Preparation
from brain_align.deploy.evaluate.outcomes import measures_of, read_outcome, write_rows
from brain_align.deploy.evaluate.output import EvaluationDirectory, check_directory, save_recipe
from brain_align.deploy.evaluate.plan import Lacking, lacking
from brain_align.deploy.evaluate.report import document, tables
from brain_align.deploy.evaluate.samplers import Engine, engines
from brain_align.deploy.evaluate.settings import evaluation_recipe
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import output_path, resolve, run_directory
from brain_align.deploy.run.start import locked, own_log, reporter

Advance = Callable[[int], object]  # counts further outputs that are complete

Progress = Callable[[int], AbstractContextManager[Advance]]
"""Shows a bar over so many outputs while its block runs."""


def evaluate(options: Options, console: PlainConsole, progress: Progress) -> dict[str, Any]:
    """Evaluate, or continue an evaluation that was stopped; write outputs and figures, and return the figures.

    Raises:
        UserError: a WHAT, the recipe, its data or the output directory cannot be used; or a run was trained on prompts.
        PipelineError: a service failed for good; what was stored stays.
    """
    report = reporter(console)
    recipe = _recipe(options, report)
    directory = EvaluationDirectory(output_path(str(options.output or f"evaluations/{recipe.name}")))
    check_directory(directory, recipe)
    with locked(directory.services):
        check_directory(directory, recipe)
        save_recipe(directory, recipe)
        job = Preparation(recipe, options, directory, report).job()
        store = SampleStore(directory.store, "evaluation")
        for sentence in (*store.damaged, *job.notes):
            report(sentence)
        todo = lacking(store, job.series, recipe)
        failed: dict[str, str] = {}
        if todo.groups:
            with own_log(directory.services):
                failed = _complete(job, todo, store, directory, report, progress)
        return _finish(job, store, directory, failed, console)


def _recipe(options: Options, report: Callable[[str], None]) -> Recipe:
    """Return the evaluation's recipe, resolved: prompts, sampling, scorers and prior."""
    recipe = load_recipe(recipe_name(options.whats, options.recipe), options.overrides)
    return evaluation_recipe(resolve(recipe, report, begun=run_directory(recipe)).recipe)


def _complete(
    job: Job,
    todo: Lacking,
    store: SampleStore,
    directory: EvaluationDirectory,
    report: Callable[[str], None],
    progress: Progress,
) -> dict[str, str]:
    """Have everything sampled and scored that is lacking; return why groups were given up."""
    from brain_align.deploy.services.cluster import LOWER_SERVICES, ray_cluster, required_resources, started_services
    from brain_align.deploy.services.make_services import scorer_pool  # Ray: not where nothing is lacking

    needed = engines(job.series, todo.requests, directory.services)
    names = list(todo.scores)
    if needed:
        names = list(dict.fromkeys(name for one in job.series for name in one.scorers))
    needs = required_resources(job.recipe, names, scoring_only=True)
    services = started_services(job.recipe, names, scoring_only=True)
    if needed:
        sampler = job.recipe.sampler
        needs = {
            "CPU": round(needs["CPU"] + sampler.replicas * sampler.cpus, 3),
            "GPU": round(needs["GPU"] + sampler.replicas * sampler.gpus, 3),
        }
        services = {"sampler": sampler, **services}
    report(f"{directory.root}: {todo.groups} outputs to sample or score; starting the services …")
    with ray_cluster(job.recipe.ray, needs, LOWER_SERVICES, services):
        pools = {name: scorer_pool(name, job.recipe, directory.services) for name in names}
        try:
            with progress(todo.groups) as advance:
                return asyncio.run(_generate(job, todo, needed, store, pools, report, advance))
        finally:
            for pool in pools.values():
                pool.kill()


async def _generate(
    job: Job,
    todo: Lacking,
    needed: Sequence[Engine],
    store: SampleStore,
    pools: Mapping[str, Pool],
    report: Callable[[str], None],
    advance: Advance,
) -> dict[str, str]:
    samplers = [engine.pool() for engine in needed]
    queue = CommitQueue(store, "evaluation", lambda _groups, _rows: None)
    wanted = {group: one.scorers for one in job.series for group in one.group_ids}
    try:
        # Samplers take longest to start; scorers come up meanwhile.
        await asyncio.gather(*(pool.start() for pool in (*samplers[:1], *pools.values())))
        async with scorers_at_work(pools, job.recipe, report, trial_groups(job.prompts)) as scorers:
            generation = Generation(job.recipe, queue, scorers, wanted, advance)
            await generation.score_stored(todo.scores)
            for engine, pool in zip(needed, samplers, strict=True):
                await generation.sample(pool, engine.requests)
                pool.kill()
            await generation.end()
            return generation.given_up
    finally:
        for pool in samplers:
            pool.kill()
        await asyncio.to_thread(queue.close)


def _finish(
    job: Job, store: SampleStore, directory: EvaluationDirectory, failed: dict[str, str], console: PlainConsole
) -> dict[str, Any]:
    """Write and show the result."""
    measures = measures_of(job.recipe)
    outcomes = [read_outcome(one, store, job.prompts, measures) for one in job.series]
    notes = [*job.notes, *(f"left out: {reason}" for reason in dict.fromkeys(failed.values()))]
    found = document(job.recipe, job.split, outcomes, job.opponent, notes)
    write_rows(directory.rows, outcomes)
    write_file(directory.figures, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
    for table in tables(found):
        console.print(table.for_console())
    console.print(f"figures   {directory.figures}\noutputs   {directory.rows}", soft_wrap=True)
    return found
