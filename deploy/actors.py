"""From a recipe to the pools of actors that serve it."""

import os

from ray.actor import ActorHandle

from common.config.recipe import LearnerSection, PriorSection, Recipe, SamplerSection, ScorerSection
from common.schemas import PRIOR
from deploy.run_directory import RunDirectory
from deploy.services import LearnerGroup, Pool
from learner.service import LearnerActor
from sampler.service import SamplerActor
from scorer.service import ScorerActor

Service = SamplerSection | ScorerSection | PriorSection | LearnerSection


def sampler_pool(recipe: Recipe, directory: RunDirectory) -> Pool:
    """The samplers."""

    def spawn(name: str, log_path: str) -> ActorHandle:
        settings, policies = recipe.model_dump(mode="json"), str(directory.policies)
        actor = SamplerActor.options(**_options(recipe.sampler))
        return actor.remote(name, settings, policies, log_path)

    return Pool("sampler", recipe.sampler.replicas, spawn, directory, recipe.timeouts.start)


def scorer_pools(recipe: Recipe, directory: RunDirectory) -> dict[str, Pool]:
    """A pool for each scorer, the prior's log-probabilities among them."""
    services: dict[str, ScorerSection | PriorSection] = {PRIOR: recipe.prior, **recipe.scorers}
    return {name: _scorer_pool(name, service, recipe, directory) for name, service in services.items()}


def _scorer_pool(name: str, service: ScorerSection | PriorSection, recipe: Recipe, directory: RunDirectory) -> Pool:
    def spawn(_label: str, log_path: str) -> ActorHandle:
        actor = ScorerActor.options(**_options(service))
        policy = recipe.policy.model_dump(mode="json")
        return actor.remote(name, service.model_dump(mode="json"), policy, log_path, service.threads)

    return Pool(f"scorer-{name}", service.replicas, spawn, directory, recipe.timeouts.start)


def learner_group(recipe: Recipe, directory: RunDirectory) -> LearnerGroup:
    """The learner's ranks."""

    def spawn(rank: int, log_path: str) -> ActorHandle:
        actor = LearnerActor.options(**_options(recipe.learner))
        return actor.remote(recipe.model_dump(mode="json"), str(directory.root), rank, log_path)

    return LearnerGroup(recipe.learner.ranks, spawn, directory)


def _options(service: Service) -> dict[str, object]:
    """What Ray reserves for an actor, and the environment that its libraries read when they are imported."""
    environment = {"OMP_NUM_THREADS": str(service.threads), "TOKENIZERS_PARALLELISM": "false"}
    forwarded = {name: os.environ[name] for name in ("HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE") if name in os.environ}
    return {
        "num_cpus": service.cpus,
        "num_gpus": service.gpus,
        "runtime_env": {"env_vars": {**environment, **forwarded}},
    }
