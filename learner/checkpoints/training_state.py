"""The contents of a checkpoint: everything that the next step depends on, for any number of ranks and any ZeRO stage.

    parameters*.safetensors   for each trainable parameter "weight/<name>" in float32, and AdamW's moments
                              "exp_avg/<name>" and "exp_avg_sq/<name>", which are absent before the first update
    random.pt                 the states of each rank's random generators
    state.json                step, AdamW's count of updates, digest of the settings that decide what is learned,
                              "lessons" (the stepper's state) and "partition" (an objective's running mean)

Frozen weights are not in it. The step is also the position in the stream of groups and in the schedule of the learning
rate: the sample store records which groups trained which step.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import identity_settings
from brain_align.common.errors import UserError
from brain_align.common.identity import digest
from brain_align.common.nn.models.shards import ShardReader, write_shards
from brain_align.learner.engine_protocol import ParameterState
from brain_align.learner.objectives.policy_gradients import RunningMean
from brain_align.learner.steps.stepper import StepperState

_DECISIVE = ("seed", "policy.", "objective.", "learner.", "algorithm.rounds", "algorithm.updates_per_round")
_PLACES = ("policy.model", "policy.tokenizer", "policy.sft_adapter")
_MOMENTS = ("exp_avg", "exp_avg_sq")
_PARAMETERS, _RANDOM, _STATE = "parameters", "random.pt", "state.json"

RandomState = dict[str, Any]


@dataclass(frozen=True)
class TrainingState:
    """The state after `step`, without the parameters."""

    step: int
    updates: int
    settings_digest: str
    random_states: list[RandomState]
    stepper: StepperState
    normaliser: RunningMean


def settings_digest(recipe: Recipe) -> str:
    """Return the digest of the settings that steps depend on, without paths (runs may move) and sharing of work."""
    settings = identity_settings(recipe.model_dump(mode="json"))
    return digest({name: settings[name] for name in settings if name.startswith(_DECISIVE) and name not in _PLACES})


def write_training_state(
    directory: Path, state: TrainingState, parameters: Iterable[tuple[str, ParameterState]]
) -> None:
    """Write a checkpoint into an existing directory; at most one file's worth of parameters is in memory."""
    write_shards(_flat(parameters), directory, _PARAMETERS)
    torch.save(state.random_states, directory / _RANDOM)
    facts = {
        "step": state.step,
        "settings_digest": state.settings_digest,
        "updates": state.updates,
        "lessons": asdict(state.stepper),
        "partition": asdict(state.normaliser),
    }
    (directory / _STATE).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read_training_state(directory: Path, expected_digest: str) -> TrainingState:
    """Read a checkpoint without its parameters.

    Raises:
        UserError: it was made with other settings.
    """
    facts = json.loads((directory / _STATE).read_text(encoding="utf-8"))
    if facts["settings_digest"] != expected_digest:
        raise UserError(
            f"The checkpoint {directory} was made with other settings of seed, policy, objective or learner (their "
            f"digest is {facts['settings_digest']}, this recipe's is {expected_digest}); set another run.dir."
        )
    random_states = torch.load(directory / _RANDOM, weights_only=True)
    return TrainingState(
        step=facts["step"],
        updates=facts["updates"],
        settings_digest=expected_digest,
        random_states=random_states,
        stepper=StepperState(**facts["lessons"]),
        normaliser=RunningMean(**facts["partition"]),
    )


class SavedParameters:
    """A checkpoint's parameters, read one at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reader = ShardReader(directory, _PARAMETERS)

    def names(self) -> list[str]:
        """Return the names of all parameters."""
        return [name.removeprefix("weight/") for name in self._reader.names() if name.startswith("weight/")]

    def state_of(self, name: str) -> ParameterState:
        """Read a parameter's state.

        Raises:
            UserError: the checkpoint is another model's or adapter's, and does not have the parameter.
        """
        if f"weight/{name}" not in self._reader:
            raise UserError(
                f"The checkpoint {self._directory} does not have the parameter {name}: it was made with another model "
                f"or adapter; restore that one, or set another run.dir."
            )
        moments = {key: f"{key}/{name}" for key in _MOMENTS if f"{key}/{name}" in self._reader}
        return ParameterState(
            self._reader.read(f"weight/{name}"),
            {key: self._reader.read(path) for key, path in moments.items()} or None,
        )


def _flat(parameters: Iterable[tuple[str, ParameterState]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, state in parameters:
        yield f"weight/{name}", state.weight
        for key, moment in (state.moments or {}).items():
            yield f"{key}/{name}", moment


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> RandomState:
    """Return the states of all generators: numbers, tuples and tensors only, for `torch.load(weights_only=True)`."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: RandomState) -> None:
    """Restore the states that `random_state` returned; those of GPUs only if there are as many GPUs."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
