"""The services of a comparison: samplers, scorers and an examiner for all runs, and one learner per run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from brain_align.common.config.recipe import Recipe
from brain_align.common.policies import ProposalModel
from brain_align.common.schemas import PRIOR
from brain_align.deploy.actors.actor import Handle
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.actors.ray_handle import RayHandle
from brain_align.deploy.compare.examine.examiner import ExaminerActor
from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.train.seed_groups import evaluation_scorers
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.services.cluster import required_resources
from brain_align.deploy.services.make_services import actor_options, make_services
from brain_align.deploy.services.services import Services


@dataclass(frozen=True)
class SharedServices:
    """Pools that hold no state of any run: each request names the registry of its versions.

    `shared` has the samplers and scorers; its learner is never started. The versions adapt `model`.
    """

    shared: Services
    examiner: Pool
    model: ProposalModel

    def of_run(self, recipe: Recipe, directory: RunDirectory, *, trains: bool = True) -> Services:
        """Return the services of one run: its own learner, and the shared pools.

        A run that `trains` also has a scorer of its own for its proposals, where the recipe has their log-probabilities
        recomputed: that scorer alone belongs to one run's versions.
        """
        own = make_services(recipe, directory, self.model, proposal_scorers(recipe) if trains else [])
        return replace(own, samplers=self.shared.samplers, scorers={**self.shared.scorers, **own.scorers})

    def release(self, services: Services) -> None:
        """End what is a run's own among its services."""
        services.learner.kill()
        for name, pool in services.scorers.items():
            if name not in self.shared.scorers:
                pool.kill()

    def raise_failure(self) -> None:
        """Raise the PipelineError or UserError of a service that all runs share, if one has failed for good."""
        for pool in [self.shared.samplers, *self.shared.scorers.values(), self.examiner]:
            pool.raise_failure()

    def kill(self) -> None:
        """End all actors."""
        self.shared.kill()
        self.examiner.kill()


def shared_services(recipe: Recipe, directory: ComparisonDirectory, model: ProposalModel) -> SharedServices:
    """Return the services of a comparison, not yet started."""
    home = directory.services

    def spawn(_name: str, log_path: str) -> Handle:
        options = actor_options(recipe.prior)
        return RayHandle.spawn(ExaminerActor, options, recipe.model_dump(mode="json"), log_path)

    return SharedServices(
        shared=make_services(recipe, home, model, evaluation_scorers(recipe)),
        examiner=Pool("examiner", 1, spawn, home.log, PoolSettings(recipe.timeouts.start)),
        model=model,
    )


def proposal_scorers(recipe: Recipe) -> list[str]:
    """Return the scorers that each run has for itself: that of its proposals, where these are recomputed."""
    return [name for name in recipe.logprob_scorers() if name != PRIOR]


def comparison_resources(recipe: Recipe, parallel: int) -> dict[str, float]:
    """Return the CPUs and GPUs that all services reserve while `parallel` runs are trained side by side."""
    needs = required_resources(recipe, evaluation_scorers(recipe))
    learner, prior = recipe.learner, recipe.prior
    own = (parallel + 1) * prior.replicas * len(proposal_scorers(recipe))  # one samples a seed's groups meanwhile
    return {
        "CPU": round(needs["CPU"] + (parallel - 1) * learner.ranks * learner.cpus + (1 + own) * prior.cpus, 3),
        "GPU": round(needs["GPU"] + (parallel - 1) * learner.ranks * learner.gpus + (1 + own) * prior.gpus, 3),
    }


def fitting(recipe: Recipe, most: int, offers: Mapping[str, float]) -> int:
    """Return how many runs, from 1 to `most`, can be trained side by side on the resources that a cluster offers."""
    for parallel in range(most, 1, -1):
        needs = comparison_resources(recipe, parallel)
        if all(need <= offers.get(name, 0) for name, need in needs.items()):
            return parallel
    return 1
