"""What a checkpoint holds: all that the next step depends on, whatever the number of ranks or the ZeRO stage.

    weights.safetensors    the adapter in float32, by parameter name
    moments.safetensors    AdamW's moments, "exp_avg/<name>" and "exp_avg_sq/<name>"; absent before an update
    random.pt              the generators' states of each rank
    state.json             step, AdamW's count of updates, digest of the settings that decide what is learned, and why
                           the last steps were skipped, if they were

The frozen base weights are not in it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from common.config.recipe import Recipe
from common.config.validation import identity_settings
from common.errors import UserError
from common.identity import digest
from learner.engine_protocol import OptimizerState
from learner.randomness import RandomState

_DECISIVE = ("seed", "policy.adapter.", "policy.dtype", "objective.", "learner.")
_PORTABLE = ("learner.ranks", "learner.threads", "learner.zero_stage", "learner.micro_batch_tokens")
_WEIGHTS, _MOMENTS, _RANDOM, _STATE = "weights.safetensors", "moments.safetensors", "random.pt", "state.json"


@dataclass(frozen=True)
class TrainingState:
    """The state after `step`."""

    step: int
    settings_digest: str
    weights: dict[str, torch.Tensor]
    optimizer: OptimizerState
    random_states: list[RandomState]
    skipped: list[str]

    def write(self, directory: Path) -> None:
        """Write into a directory that exists."""
        save_file(self.weights, directory / _WEIGHTS)
        if self.optimizer.moments:
            moments = self.optimizer.moments.items()
            flat = {f"{key}/{name}": moment for name, both in moments for key, moment in both.items()}
            save_file(flat, directory / _MOMENTS)
        torch.save(self.random_states, directory / _RANDOM)
        facts = {
            "step": self.step,
            "settings_digest": self.settings_digest,
            "updates": self.optimizer.updates,
            "skipped": self.skipped,
        }
        (directory / _STATE).write_text(json.dumps(facts, indent=1))


def settings_digest(recipe: Recipe) -> str:
    """The digest of what the learner's steps depend on, but for paths (a run may be moved) and how work is shared."""
    settings = identity_settings(recipe.model_dump(mode="json"))
    return digest({name: settings[name] for name in settings if name.startswith(_DECISIVE) and name not in _PORTABLE})


def read_training_state(directory: Path, expected_digest: str) -> TrainingState:
    """Read a checkpoint.

    Raises:
        UserError: it was made with other settings.
    """
    facts = json.loads((directory / _STATE).read_text())
    if facts["settings_digest"] != expected_digest:
        raise UserError(
            f"The checkpoint {directory} was made with other settings of seed, policy, objective or learner (their "
            f"digest is {facts['settings_digest']}, here it is {expected_digest}); set another run.dir."
        )
    moments: dict[str, dict[str, torch.Tensor]] = {}
    if (directory / _MOMENTS).exists():
        for path, moment in load_file(directory / _MOMENTS).items():
            key, name = path.split("/", 1)
            moments.setdefault(name, {})[key] = moment
    return TrainingState(
        step=facts["step"],
        settings_digest=expected_digest,
        weights=load_file(directory / _WEIGHTS),
        optimizer=OptimizerState(facts["updates"], moments),
        random_states=torch.load(directory / _RANDOM, weights_only=True),
        skipped=facts["skipped"],
    )
