"""All services of a run."""

from dataclasses import dataclass

from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.services.learner_group import LearnerGroup


@dataclass(frozen=True)
class Services:
    """The pools of samplers and scorers, which several runs may share, and the run's own learner."""

    samplers: Pool
    scorers: dict[str, Pool]
    learner: LearnerGroup

    @property
    def pools(self) -> dict[str, Pool]:
        """All pools by the names that `brain scale` and `brain status` know them by."""
        return {"samplers": self.samplers, **{f"scorers.{name}": pool for name, pool in self.scorers.items()}}

    def busy_seconds(self) -> dict[str, float]:
        """How long each stage's actors have been at work, summed over them."""
        return {
            "sampling": self.samplers.busy_seconds,
            "scoring": sum(pool.busy_seconds for pool in self.scorers.values()),
            "training": self.learner.busy_seconds,
        }

    def kill(self) -> None:
        """End all actors."""
        for pool in self.pools.values():
            pool.kill()
        self.learner.kill()
