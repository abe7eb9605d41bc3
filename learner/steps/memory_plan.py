"""An estimate, from the model and the device, of how many tokens fit into one forward and backward pass.

For its gradient a pass keeps, per token, the inputs and outputs of the linear layers and some hidden states in float32
(norms, residuals). The estimate of that memory is about a third too large, to be safe. Where memory still runs out, the
learner halves the budget (learner/steps/stepper.py).
"""

from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from brain_align.common.config.training import LearnerSection
from brain_align.common.errors import UserError
from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.learner.policy import elements

TOKENS_ON_CPU = 16384
"""The fixed budget on CPUs, where all services share the machine's memory."""

_USABLE = 0.85
"""Share of a GPU's memory; the rest is for kernels' workspaces and fragmentation."""
_LARGEST = 131_072
_STEP = 256
_FLOAT32_STATES = 8
"""Hidden states that a layer keeps in float32: inputs and statistics of two norms, residuals, rotary embeddings."""
_GIB = 2**30


@dataclass(frozen=True)
class Footprint:
    """The memory that training a policy takes, in bytes."""

    fixed: int  # weights, gradients and optimiser
    token: int  # activations per token


def footprint(policy: SequenceLogprobs, settings: LearnerSection, ranks: int = 1) -> Footprint:
    """Estimate the memory that training a policy takes on one rank of several.

    Trainable parameters have gradients and two moments, and 16-bit ones a float32 copy. The ranks share the optimiser
    (ZeRO-1), gradients too (2), and weights too (3).
    """
    weights = sum(elements(value) * value.itemsize for value in policy.parameters())
    trainable = policy.trainable().values()
    gradients = 4 * sum(map(elements, trainable))
    optimiser = sum(elements(value) * (8 + (4 if value.itemsize < 4 else 0)) for value in trainable)
    optimiser = 0 if settings.offload_optimizer else optimiser
    weights, gradients, optimiser = (
        size // ranks if settings.zero_stage >= stage else size
        for size, stage in ((weights, 3), (gradients, 2), (optimiser, 1))
    )
    config = policy.decoder.config
    layers, hidden, width = config.num_hidden_layers, config.hidden_size, policy.decoder.dtype.itemsize
    kept = layers * _FLOAT32_STATES * hidden * 4 + sum(_kept_by(layer, width) for layer in _linear_layers(policy))
    if settings.activation_checkpointing:  # layers keep their input only
        kept = kept // layers + layers * hidden * width
    return Footprint(weights + gradients + optimiser, kept + 3 * hidden * 4)  # and the LM head's tiles


def token_budget(policy: SequenceLogprobs, settings: LearnerSection, ranks: int) -> int:
    """Return the tokens that a forward and backward pass of one rank has room for, on its share of the policy's device.

    The number depends on the model and the kind of device alone, not on what else uses the device: a run repeats
    exactly.

    Raises:
        UserError: not even the weights fit.
    """
    device = policy.decoder.device
    if device.type != "cuda":
        return TOKENS_ON_CPU
    memory = torch.cuda.get_device_properties(device).total_memory
    return tokens_within(int(memory * min(1.0, settings.gpus)), footprint(policy, settings, ranks))


def tokens_within(memory: int, needs: Footprint) -> int:
    """Return the token budget for a GPU with `memory` bytes; see `token_budget`."""
    tokens = int(_USABLE * memory - needs.fixed) // needs.token // _STEP * _STEP
    if tokens < _STEP:
        raise UserError(
            f"The policy does not fit: its weights, gradients and optimiser take {needs.fixed / _GIB:.1f} GiB and "
            f"{_STEP} tokens take {_STEP * needs.token / _GIB:.1f} GiB, but the GPU has {memory / _GIB:.0f} GiB; "
            f"use learner.activation_checkpointing, policy.quantization, learner.zero_stage or more ranks."
        )
    return min(tokens, _LARGEST)


def _linear_layers(policy: SequenceLogprobs) -> list[nn.Module]:
    """Return the model's own linear layers, with their adapters, except the LM head."""
    head = policy.head.weight
    adapted = [module for module in policy.modules() if isinstance(module, LoraLayer)]
    inside = {id(part) for module in adapted for part in module.modules() if part is not module}
    plain = [
        module
        for module in policy.modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in inside and module.weight is not head
    ]
    return [*adapted, *plain]


def _kept_by(layer: nn.Module, width: int) -> int:
    """Return the bytes per token that a linear layer keeps: input, output, and a float32 input for an adapter."""
    if isinstance(layer, Conv1D):  # GPT-2's linear layers
        return sum(layer.weight.shape) * width
    assert isinstance(layer, nn.Linear | LoraLayer)
    copies = layer.in_features * 4 if isinstance(layer, LoraLayer) and width < 4 else 0
    return (layer.in_features + layer.out_features) * width + copies
