"""The policy q_θ as the module that the engine trains."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.identity import seed_from
from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.common.nn.models.policy_model import load_policy_model


def elements(parameter: torch.Tensor) -> int:
    """Return the number of a parameter's elements, also where ZeRO-3 keeps only a part of it in this process."""
    return parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()


def load_policy(recipe: Recipe) -> SequenceLogprobs:
    """Load the policy as it is before the first step: q_θ = p; the adapter's parameters are trainable, or all.

    Raises:
        UserError: the model or its adapter cannot be loaded, or cannot be trained as the recipe asks.
    """
    device = "cuda" if recipe.learner.gpus and torch.cuda.is_available() else "cpu"
    model = load_policy_model(recipe.policy, device, seed=seed_from("adapter", recipe.seed), window=recipe.window)
    if recipe.learner.activation_checkpointing:
        _checkpoint_activations(model)
    return SequenceLogprobs(model)


def _checkpoint_activations(model: PreTrainedModel | PeftModel) -> None:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not base.supports_gradient_checkpointing:
        raise UserError(
            f"learner.activation_checkpointing=true: a {base.config.model_type} model does not support it; set false."
        )
    base.gradient_checkpointing_enable({"use_reentrant": False})
