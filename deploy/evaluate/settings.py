"""The recipe of an evaluation: what its samplers and scorers are told, whatever the run's recipe trains on."""

from pathlib import Path
from typing import Any

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.schemas import HUMAN

PROMPTS_PER_REQUEST = 128
"""Outputs of one request are sampled side by side and committed together: a kill loses at most so many."""

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "*.model", "tekken.json")


def evaluation_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe's prompts, sampling and scorers, with samplers even where the run trains from a store.

    Requests are sampled as in strict mode, each on its own with a seed: the same command gives the same outputs.
    """
    settings = recipe.model_dump(mode="json")
    reward = recipe.objective.reward
    settings |= {
        "store": {},
        "logprobs": {},
        "objective": {"reward": _rewarding(recipe) if reward == HUMAN else reward},
    }
    settings["algorithm"] |= {"max_staleness": 0, "proposal": None}
    settings["sampler"] |= {
        "replicas": max(1, recipe.sampler.replicas),
        "lease_prompts": PROMPTS_PER_REQUEST,
    }
    return Recipe.model_validate(settings)


def _rewarding(recipe: Recipe) -> str:
    """Return a scorer whose values may be a reward, for a run that has learnt human preferences instead."""
    found = [name for name, scorer in recipe.scorers.items() if scorer.use == "training"]
    if not found:
        raise UserError(
            "The run has learnt human preferences, and all its scorers have use=evaluation; set scorers.NAME.use="
            "training for the one that is to be reported as the reward."
        )
    return found[0]


def with_policy_of(recipe: Recipe, other: Recipe) -> Recipe:
    """Return the recipe with another run's policy: its samplers load that run's versions."""
    settings = recipe.model_dump(mode="json")
    settings["policy"] = other.policy.model_dump(mode="json")
    return _as_sampled(settings)


def with_adapter(recipe: Recipe, base: str, adapter: Path) -> Recipe:
    """Return the recipe with a policy that is a model with an adapter."""
    settings = recipe.model_dump(mode="json")
    of_recipe = base == recipe.policy.model
    settings["policy"] |= {
        "model": base,
        "tokenizer": recipe.policy.tokenizer if of_recipe else None,
        "sft_adapter": str(adapter),
        "method": "lora",
        "adapter": None,
    }
    return _as_sampled(settings)


def with_model(recipe: Recipe, model: str) -> Recipe:
    """Return the recipe with a policy that is a whole model; where that has no tokenizer, the recipe's remains."""
    settings = recipe.model_dump(mode="json")
    place = Path(model)
    bare = place.is_dir() and not any(next(place.glob(pattern), None) for pattern in _TOKENIZER)
    settings["policy"] |= {
        "model": model,
        "tokenizer": (recipe.policy.tokenizer or recipe.policy.model) if bare else None,
        "sft_adapter": None,
        "method": "full",
        "adapter": None,
        "quantization": None,
    }
    return _as_sampled(settings)


def _as_sampled(settings: dict[str, Any]) -> Recipe:
    """Return a recipe for samplers alone: what only a learner has to do with does not stand in its way."""
    settings["learner"] |= {"zero_stage": 1, "offload_optimizer": False}
    settings["sampler"]["delivery"] = "auto"
    return Recipe.model_validate(settings)
