"""From a recipe to the pools of actors that serve it."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.sampling import SamplerSection
from brain_align.common.config.scorers import ScorerPool
from brain_align.common.config.training import LearnerSection, PriorSection
from brain_align.common.policies import ProposalModel
from brain_align.common.system.run_place import VARIABLE, mark_start
from brain_align.common.user_code import DIRECTORY
from brain_align.deploy.actors.actor import Handle
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.actors.ray_handle import RayHandle
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.services.room import shortage
from brain_align.deploy.services.services import LearnerGroup, Services
from brain_align.learner.service import LearnerActor
from brain_align.sampler.service import SamplerActor
from brain_align.scorer.service import ScorerActor

_HEARTBEATS = 2  # calls of a sampler beside its requests: for its progress, and whether it is ready

Service = SamplerSection | ScorerPool | PriorSection | LearnerSection


def make_services(recipe: Recipe, directory: RunDirectory, model: ProposalModel, scorers: Sequence[str]) -> Services:
    """Return the pools of a recipe's samplers and of the named scorers, and its learner, not yet started."""
    start = mark_start(directory.root)
    return Services(
        _samplers(recipe, directory, model, start),
        {name: scorer_pool(name, recipe, directory, start) for name in scorers},
        _learner(recipe, directory, start),
    )


def _samplers(recipe: Recipe, directory: RunDirectory, model: ProposalModel, start: Path) -> Pool:
    strict = recipe.algorithm.strict  # a request is generated on its own there
    slots = 1 if strict else recipe.sampler.leases_in_flight
    options = {**actor_options(recipe.sampler, start), "max_concurrency": slots + _HEARTBEATS}

    def spawn(name: str, log_path: str) -> Handle:
        return RayHandle.spawn(SamplerActor, options, name, recipe.model_dump(mode="json"), model, log_path)

    timeouts = recipe.timeouts
    settings = PoolSettings(timeouts.start, slots, timeouts.silence)
    room = partial(shortage, recipe.sampler)
    return Pool("sampler", recipe.sampler.replicas, spawn, directory.log, settings, room)


def scorer_pool(name: str, recipe: Recipe, directory: RunDirectory, start: Path | None = None) -> Pool:
    """Return the pool of one scorer, not yet started; of a run's, `start` is the file of this start of the run."""
    service = recipe.scorer(name)
    options = actor_options(service, start)

    def spawn(_label: str, log_path: str) -> Handle:
        recipe_, policies = recipe.model_dump(mode="json"), str(directory.policies)
        arguments = (name, recipe_, policies, str(directory.golden(name)), log_path)
        return RayHandle.spawn(ScorerActor, options, *arguments)

    settings = PoolSettings(recipe.timeouts.start, outage=recipe.timeouts.outage)
    return Pool(f"scorer-{name}", service.replicas, spawn, directory.log, settings, partial(shortage, service))


def _learner(recipe: Recipe, directory: RunDirectory, start: Path) -> LearnerGroup:
    options = actor_options(recipe.learner, start)

    def spawn(rank: int, log_path: str) -> Handle:
        arguments = (recipe.model_dump(mode="json"), str(directory.root), rank, log_path)
        return RayHandle.spawn(LearnerActor, options, *arguments)

    room = partial(shortage, recipe.learner)
    return LearnerGroup(recipe.learner.ranks, spawn, directory.log, recipe.timeouts, room)


def actor_options(service: Service, start: Path | None = None) -> dict[str, object]:
    """Return what Ray reserves for an actor, and the environment that its libraries read when imported.

    It is made once, when the services are: later, Ray may have replaced the current directory of a job by another.
    `start` is a file in the run directory that the actor must see, see `check_place`.
    """
    environment = {"OMP_NUM_THREADS": str(service.threads), "TOKENIZERS_PARALLELISM": "false", DIRECTORY: os.getcwd()}
    # Threads that wait for work sleep. By default they spin, and services that share a node's cores then take each
    # other's time: a learner's step beside an evaluation took more than twice as long.
    environment["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    if path := os.environ.get("PYTHONPATH"):
        environment["PYTHONPATH"] = path
    environment["PYTHONUTF8"] = "1"  # whatever the locale of the node: libraries and users' functions read text, too
    if start is not None:
        environment[VARIABLE] = str(start)
    return {"num_cpus": service.cpus, "num_gpus": service.gpus, "runtime_env": {"env_vars": environment}}
