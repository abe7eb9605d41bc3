"""`brain compare`: train every method on the same stored groups, with the same budget."""

import asyncio

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.schemas import HUMAN
from brain_align.deploy.compare.plan.layout import ComparisonDirectory, check_comparison, save_comparison
from brain_align.deploy.compare.plan.methods import any_on_pairs, method_recipe, refuse_equal
from brain_align.deploy.compare.plan.request import Request
from brain_align.deploy.compare.plan.saved_request import save_request
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan
from brain_align.deploy.compare.reading import write_answers
from brain_align.deploy.compare.report.report import report
from brain_align.deploy.compare.results.choices import unfinished
from brain_align.deploy.compare.train.derived_stores import check_pairs, pairs_digest
from brain_align.deploy.compare.train.progress import Progress
from brain_align.deploy.compare.train.runner import ComparisonSetup, Runner
from brain_align.deploy.compare.train.seed_groups import evaluation_scorers
from brain_align.deploy.compare.train.services import comparison_resources, fitting, shared_services
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.delivery import proposal_model
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.preflight import Inputs, check_inputs
from brain_align.deploy.run.resolve import resolve
from brain_align.deploy.run.start import locked, own_log, reporter
from brain_align.deploy.run.stored_source import open_source
from brain_align.deploy.services.cluster import LOWER_SERVICES, ray_cluster, started_services
from brain_align.deploy.worlds.pretrained.report import warnings_of
from brain_align.learner.objectives.catalogue import make_objective

MOST_PARALLEL = 2
"""The default number of runs that are trained side by side, if the cluster has room for them."""


def compare(
    recipe: Recipe, request: Request, directory: ComparisonDirectory, parallel: int | None, console: PlainConsole
) -> None:
    """Train the runs that are not finished, and report on all; resume what was begun in the directory.

    All runs' recipes derive from `recipe`. `parallel` runs are trained side by side; None: two, if the cluster has room
    for two learners.

    Raises:
        UserError: the request, the recipe or the directory is not valid.
        PipelineError: a service failed for good.
    """
    check_recipe(recipe, request)
    check_comparison(directory, recipe)
    plan = ComparisonPlan(request, recipe.sampling.n)
    resolved = resolve(recipe, reporter(console))
    inputs = check_inputs(resolved.recipe, directory.services, directory.facts)
    assert isinstance(inputs, Inputs), "a recipe without samplers was refused"
    for note in inputs.notes:
        console.print(note, soft_wrap=True)
    facts = {**resolved.facts(), **inputs.facts()}
    setup = ComparisonSetup(resolved, inputs, facts, directory)
    failed: dict[str, str] = {}
    with locked(RunDirectory(directory.root)):
        save_comparison(directory, recipe, {**facts, **_pairs_facts(recipe, request)})
        save_request(directory.request, request)
        if unfinished(directory, plan):
            with own_log(directory.services):
                failed = _train(setup, plan, parallel, console)
        write_answers(setup, plan, failed)
        report(directory, recipe, plan, failed, console, warnings_of(resolved.recipe))


def _pairs_facts(recipe: Recipe, request: Request) -> dict[str, str | None]:
    """Return what identifies the human pairs, if a method trains on these."""
    if not any_on_pairs(recipe, request.methods):
        return {}
    assert request.pairs is not None, "without pairs the method was refused"
    return {"pairs": pairs_digest(open_source(request.pairs).store)}


def _train(setup: ComparisonSetup, plan: ComparisonPlan, asked: int | None, console: PlainConsole) -> dict[str, str]:
    """Train all runs; return why some could not be trained, by name."""
    recipe, directory, say = setup.base.recipe, setup.directory, reporter(console)
    model = proposal_model(recipe, directory.services, setup.inputs.delivery)
    say(f"comparison {directory.root}; starting the services …")
    remedy = "lower --parallel, or their replicas, cpus or gpus" if asked and asked > 1 else LOWER_SERVICES
    actors = started_services(recipe, evaluation_scorers(recipe))
    with ray_cluster(recipe.ray, comparison_resources(recipe, asked or 1), remedy, actors) as offers:
        parallel = asked or fitting(recipe, MOST_PARALLEL, offers)
        say(Progress(directory, plan, parallel).sentence())  # its expected end depends on how many runs fit
        services = shared_services(recipe, directory, model)
        runner = Runner(setup, plan, services, parallel, say)
        try:
            asyncio.run(runner.run())
        finally:
            services.kill()
    return runner.failed


def check_recipe(recipe: Recipe, request: Request) -> None:
    """Raise UserError if a recipe and a request cannot be compared on, before anything is prepared."""
    if recipe.sampler.replicas == 0:
        raise UserError("brain compare samples its own groups; set sampler.replicas to 1 or more.")
    if recipe.store.uri is not None:
        raise UserError("brain compare keeps its stores in --out; remove store.uri.")
    for method in request.methods:
        trained = method_recipe(recipe, method, pairs=request.pairs)
        make_objective(trained.objective)  # fails now, not after hours, if an own loss cannot be imported
        if trained.objective.reward == HUMAN:
            assert request.pairs is not None, "without pairs the method was refused"
            check_pairs(open_source(request.pairs).store, recipe.algorithm)
        for n in request.group_sizes if method.label in request.swept else ():
            method_recipe(recipe, method, pairs=request.pairs, sampling={"n": n})
    refuse_equal(recipe, request.methods)
