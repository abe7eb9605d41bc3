"""What a checkpoint holds: all that the next step depends on, whatever the number of ranks or the ZeRO stage.

    weights.safetensors    the adapter in float32, by parameter name
    moments.safetensors    AdamW's moments, "exp_avg/<name>" and "exp_avg_sq/<name>"; absent before an update
    random.pt              the generators' states of each rank
    state.json             step, AdamW's count of updates, digest of the recipe

The frozen base weights are not in it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from common.errors import UserError
from learner.engine_protocol import OptimizerState
from learner.randomness import RandomState

_WEIGHTS, _MOMENTS, _RANDOM, _STATE = "weights.safetensors", "moments.safetensors", "random.pt", "state.json"


@dataclass(frozen=True)
class TrainingState:
    """The state after `step`."""

    step: int
    recipe_digest: str
    weights: dict[str, torch.Tensor]
    optimizer: OptimizerState
    random_states: list[RandomState]

    def write(self, directory: Path) -> None:
        """Write into a directory that exists."""
        save_file(self.weights, directory / _WEIGHTS)
        if self.optimizer.moments:
            moments = self.optimizer.moments.items()
            flat = {f"{key}/{name}": moment for name, both in moments for key, moment in both.items()}
            save_file(flat, directory / _MOMENTS)
        torch.save(self.random_states, directory / _RANDOM)
        facts = {"step": self.step, "recipe_digest": self.recipe_digest, "updates": self.optimizer.updates}
        (directory / _STATE).write_text(json.dumps(facts, indent=1))


def read_training_state(directory: Path, recipe_digest: str) -> TrainingState:
    """Read a checkpoint.

    Raises:
        UserError: it is one of another recipe.
    """
    facts = json.loads((directory / _STATE).read_text())
    if facts["recipe_digest"] != recipe_digest:
        raise UserError(
            f"The checkpoint {directory} is one of another recipe (digest {facts['recipe_digest']}, this "
            f"one's is {recipe_digest}); set another run.dir."
        )
    moments: dict[str, dict[str, torch.Tensor]] = {}
    if (directory / _MOMENTS).exists():
        for path, moment in load_file(directory / _MOMENTS).items():
            key, name = path.split("/", 1)
            moments.setdefault(name, {})[key] = moment
    return TrainingState(
        step=facts["step"],
        recipe_digest=recipe_digest,
        weights=load_file(directory / _WEIGHTS),
        optimizer=OptimizerState(facts["updates"], moments),
        random_states=torch.load(directory / _RANDOM, weights_only=True),
    )
