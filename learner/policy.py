"""The policy q_θ as the module that the engine trains."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.identity import seed_from
from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.common.nn.models.adapters import save_adapter
from brain_align.common.nn.models.policy_model import load_policy_model
from brain_align.common.nn.models.saving import save_causal_lm
from brain_align.learner.engine_protocol import NamedTensors

_MODEL = "model."
"""How the names of the model's parameters begin within `Policy`."""


class Policy(SequenceLogprobs):
    """log q_θ(y|x) of groups' outputs; of its parameters either the adapter's are trainable, or all."""

    def write_proposal(self, weights: NamedTensors, directory: Path) -> None:
        """Write what the samplers load: the adapter, or a whole model that transformers and vLLM read.

        Args:
            weights: the trainable ones by their names here, in full: this process may hold a part of them only.
            directory: exists.
        """
        named = ((name.removeprefix(_MODEL), value) for name, value in weights)
        if isinstance(self.model, PeftModel):
            save_adapter(self.model, directory, dict(named))
        else:
            save_causal_lm(self.model, directory, named)


def elements(parameter: torch.Tensor) -> int:
    """How many elements a parameter has, also where ZeRO-3 holds a part of it here."""
    return parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()


def load_policy(recipe: Recipe) -> Policy:
    """Load the policy as it is before the first step: q_θ = p.

    Raises:
        UserError: the model or its adapter cannot be loaded, or not be trained as the recipe says.
    """
    device = "cuda" if recipe.learner.gpus and torch.cuda.is_available() else "cpu"
    model = load_policy_model(recipe.policy, device, seed=seed_from("adapter", recipe.seed))
    if recipe.learner.activation_checkpointing:
        _checkpoint_activations(model)
    return Policy(model)


def _checkpoint_activations(model: PreTrainedModel | PeftModel) -> None:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not base.supports_gradient_checkpointing:
        raise UserError(
            f"learner.activation_checkpointing=true: a {base.config.model_type} model does not support it; set false."
        )
    base.gradient_checkpointing_enable({"use_reentrant": False})
