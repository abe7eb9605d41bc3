"""What `brain lab` measures, as one set of figures."""

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch

from deploy.lab.gradients import GradientFigures, gradient_figures
from deploy.lab.training import Budget, train
from deploy.lab.world import METHODS, OUTCOMES, World, make_world

COUNTS = (2, 4, 8, 16, 32, 64)
PROGRESS = (0.0, 0.25, 0.5, 0.75)
"""How far the policy is from the prior to the posterior when its gradient is measured; q' = p throughout."""


@dataclass(frozen=True)
class LabFigures:
    """The laboratory's results.

    Attributes:
        seed: of the world and all that is drawn in it.
        budget: of each training.
        divergences: KL(posterior ‖ q_θ) in nats before the first and after each round, by method and n.
        gradients: by progress, method and n.
    """

    seed: int
    world: World
    budget: Budget
    divergences: dict[tuple[str, int], list[float]]
    gradients: dict[tuple[float, str, int], GradientFigures]

    def at_the_end(self) -> dict[str, dict[str, float]]:
        """KL(posterior ‖ q_θ) in nats after the last round, by method and n."""
        return {method: {str(n): self.divergences[method, n][-1] for n in COUNTS} for method in METHODS}

    def variances(self, progress: float) -> dict[str, dict[str, float]]:
        """Gradient variance by method and n."""
        return {method: {str(n): self.gradients[progress, method, n].variance for n in COUNTS} for method in METHODS}

    def as_json(self) -> dict[str, Any]:
        """For lab.json; docs/lab.md says what each is."""
        return {
            "seed": self.seed,
            "outcomes": OUTCOMES,
            "budget": asdict(self.budget),
            "kl_posterior_policy": self.at_the_end(),
            "kl_posterior_policy_by_round": {
                method: {str(n): self.divergences[method, n] for n in COUNTS} for method in METHODS
            },
            "gradient_variance": self.variances(0.0),
            "gradients": [
                {"progress": progress, "method": method, "n": n, **asdict(figures)}
                for (progress, method, n), figures in self.gradients.items()
            ],
        }


def measure(seed: int, budget: Budget) -> LabFigures:
    """Train with every method, and measure every method's gradients."""
    world = make_world(seed)
    generator = torch.Generator().manual_seed(seed)
    return LabFigures(
        seed=seed,
        world=world,
        budget=budget,
        divergences={(method, n): train(world, method, n, budget, seed) for method, n in product(METHODS, COUNTS)},
        gradients={
            (progress, method, n): gradient_figures(
                world, method, n, world.log_policy(progress), world.log_prior, generator
            )
            for progress, method, n in product(PROGRESS, METHODS, COUNTS)
        },
    )
