"""Whether a model's log-probabilities can be computed here: tried on short, made-up texts when it is loaded."""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from brain_align.common.errors import UserError, first_line
from brain_align.common.nn.models.configuration import context_length

_LENGTH = 16
"""Tokens of a text."""
_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3}
_ROUNDING_IN_16_BITS = 0.2
"""The part of its norm by which rounding may move a hidden state (and the choice of experts, in 16 bits)."""


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the part of a causal language model that computes its last hidden states; a decoder alone is its own."""
    base: Any = model.base_model  # `.model` of a Llama, `.transformer` of a GPT-J
    if base is model and model.get_output_embeddings() is not None:  # its prefix is that of another class (Llama 4)
        found = getattr(model, "model", None)
        base = found if isinstance(found, nn.Module) else base
    assert isinstance(base, nn.Module)
    return base


def takes_positions(decoder: nn.Module) -> bool:
    """Return whether a decoder can be told the positions of its tokens."""
    return "position_ids" in inspect.signature(decoder.forward).parameters


@torch.no_grad()
def check_exact(model: PreTrainedModel, source: str) -> None:
    """Refuse a model whose log-probabilities are not those of its output layer on its causal decoder's last states.

    The model is on its device, without active dropout; messages call it `source`.

    Raises:
        UserError: its logits are transformed (soft-capped or scaled, say), it reads later tokens, or it cannot be
            computed from token ids alone.
    """
    kind = f"A {model.config.model_type} model ({source})"
    length = min(_LENGTH, context_length(model.config))
    half = length // 2
    try:
        rows = (torch.arange(length, device=model.device) % model.config.vocab_size).repeat(2, 1)
        rows[1, half:] = rows[1, half:].flip(0)  # two texts that begin alike
        expected = model(input_ids=rows, use_cache=False).logits
        states = decoder_of(model)(input_ids=rows, use_cache=False)[0]
        head: nn.Module = model.get_output_embeddings()
        logits = head(states)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any kind: the model's own code
        raise UserError(f"{kind} cannot be computed from token ids alone: {first_line(error)}") from error
    if logits.shape != expected.shape or not torch.allclose(expected, logits, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"{kind} transforms its logits after the output layer: this is not supported, its log-probabilities would "
            f"be wrong."
        )
    one, other = states[:, :half].float()
    if not (one - other).norm() <= _ROUNDING.get(model.dtype, _ROUNDING_IN_16_BITS) * one.norm():
        raise UserError(
            f"{kind} reads tokens that come later in a text (is it an encoder?), so it has no log-probabilities of a "
            f"text's next token."
        )
