"""The policy q_θ: the prior with a LoRA adapter, as the module that the engine trains."""

import torch

from common.config.recipe import Recipe
from common.identity import seed_from
from common.nn.adapters import attach_new_adapter
from common.nn.causal_lm import load_causal_lm
from common.nn.logprobs import SequenceLogprobs


class Policy(SequenceLogprobs):
    """log q_θ(y|x) of groups' outputs; only the adapter is trainable."""

    def weights(self) -> dict[str, torch.Tensor]:
        """The trainable weights by name."""
        return {name: value.detach().cpu() for name, value in self.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over what `weights` returned."""
        trainable = {name: value for name, value in self.named_parameters() if value.requires_grad}
        assert weights.keys() == trainable.keys(), "the weights are those of another adapter"
        for name, value in trainable.items():
            value.copy_(weights[name])


def new_policy(recipe: Recipe) -> Policy:
    """Load the prior and attach a new adapter: q_θ = p until the first step.

    Raises:
        UserError: the model cannot be loaded, or has no such modules as the adapter is for.
    """
    device = "cuda" if recipe.learner.gpus and torch.cuda.is_available() else "cpu"
    model = load_causal_lm(recipe.policy.model, recipe.policy.dtype, device)
    return Policy(attach_new_adapter(model, recipe.policy.adapter, seed_from("adapter", recipe.seed)))
