"""The settings that decide what a run learns: they name the run, and must not change when it is resumed."""

import fnmatch
from collections.abc import Mapping
from typing import Any

from brain_align.common.config.recipe import Recipe
from brain_align.common.identity import digest
from brain_align.common.user_code import PACKAGE

_OPERATIONAL = (
    "run.*",
    "store.uri",
    "ray.*",
    "timeouts.*",
    "tracking.*",
    "prepare.cache",
    "prepare.device",
    "prepare.micro_batch_tokens",
    "prepare.activation_checkpointing",
    "sampler.replicas",
    "sampler.leases_in_flight",
    "sampler.delivery",
    "sampler.autoscale",
    "sampler.autoscale.*",
    "sampler.gpus",
    "sampler.cpus",
    "sampler.tensor_parallel",
    "prior.replicas",
    "prior.gpus",
    "prior.cpus",
    "scorers.*.replicas",
    "scorers.*.gpus",
    "scorers.*.cpus",
    "scorers.*.timeout",
    "scorers.*.attempts",
    "scorers.*.backoff",
    "scorers.*.concurrency",
    "learner.ranks",
    "learner.gpus",
    "learner.cpus",
    "learner.threads",
    "learner.zero_stage",
    "learner.offload_optimizer",
    "learner.activation_checkpointing",
    "learner.micro_batch_tokens",
    "learner.max_skipped_in_a_row",
    "logprobs.gap_warning",
    "learner.checkpoint_steps",
    "learner.keep_checkpoints",
)
"""Settings that change how a run is computed, but not what it learns, but for the rounding of floats: they may differ
when a run is resumed."""


_CAME_LATER: dict[str, Any] = {
    "data.continue_final_message": False,
    "prepare.base": None,
    "prepare.adapter.r": 16,
    "prepare.adapter.alpha": 32,
    "prepare.adapter.targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "prepare.layers": None,
    "prepare.dtype": "bfloat16",
    "prepare.max_prompt_tokens": 192,
    "prepare.max_output_tokens": 64,
    "prepare.max_pair_tokens": 256,
    "prepare.held_out_pairs": 1000,
    "prepare.sft.examples": 1000,
    "prepare.sft.epochs": 1,
    "prepare.sft.learning_rate": 2e-4,
    "prepare.sft.batch": 16,
    "prepare.reward.pairs": None,
    "prepare.reward.epochs": 1,
    "prepare.reward.learning_rate": 3e-4,
    "prepare.reward.batch": 16,
    "evaluation.max_kl": None,
    "evaluation.choose": "win-rate",
    "evaluation.patience": None,
    "objective.truncated": "keep",
    "objective.truncated_penalty": None,
}
"""Settings that the first recipes did not have, with the value under which a run is what it was without them."""


def identity_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what a run learns, flat: all but the operational ones, and what came later.

    Functions of this project count the same with and without `brain_align.`, which the first recipes left out.
    """
    return {
        name: value.removeprefix(PACKAGE) if isinstance(value, str) else value
        for name, value in _dotted(settings).items()
        if not (name in _CAME_LATER and value == _CAME_LATER[name])
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in _OPERATIONAL)
    }


def recipe_digest(recipe: Recipe) -> str:
    """The digest of what decides a run's result; it names the run."""
    return digest(identity_settings(recipe.model_dump(mode="json")))


def differing_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each non-operational setting in which two resolved configurations differ."""
    before, after = identity_settings(old), identity_settings(new)
    names = sorted(before.keys() | after.keys())
    pairs = [(name, before.get(name), after.get(name)) for name in names]
    return [f"{name}: {one!r} there, {other!r} now" for name, one, other in pairs if one != other]


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one flat dictionary with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(_dotted(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
