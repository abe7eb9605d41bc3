"""Stock transformers models on packed rows.

Only a model's attention changes: the row's layout takes the place of the attention mask (common/nn/prefix/packing.py).
Models on transformers' attention interface use an attention function that is registered there; GPT-J, which has an
attention of its own, uses a subclass of it. Without a layout both compute what they always did.
"""

from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.gptj.modeling_gptj import GPTJAttention

from brain_align.common.nn.models.configuration import head_dimension
from brain_align.common.nn.models.exactness import decoder_of, takes_positions
from brain_align.common.nn.prefix.attention import prefix_attention, unsupported
from brain_align.common.nn.prefix.packing import Layout

NAME = "brain_shared_prefix"
"""The name of the attention function in transformers' attention interface."""

_CHANGES_SCORES = ("attn_logit_softcapping", "alibi")


def enable_packed_rows(model: PreTrainedModel) -> str | None:
    """Enable a model, in place, to read packed rows; harmless to repeat.

    Returns:
        None; or the reason why it cannot, with the model unchanged.
    """
    if reason := _unsuitable(model) or unsupported(model.device, model.dtype, head_dimension(model.config)):
        return reason
    if attentions := [module for module in model.modules() if isinstance(module, GPTJAttention)]:
        if any(type(module) not in (GPTJAttention, _GPTJPrefixAttention) for module in attentions):
            return "its GPT-J attention is not the eager one"
        for module in attentions:
            module.__class__ = _GPTJPrefixAttention
        _fuse_activations(model)
        return None
    # The function registered here cannot compute what a fused kernel cannot (attention sinks, say).
    if not (model._supports_sdpa and model._can_set_attn_implementation()):
        return "its attention is not a plain one on transformers' attention interface"
    AttentionInterface.register(NAME, _interface_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)  # for padded rows: sliding windows need their masks
    model.set_attn_implementation(NAME)
    _fuse_activations(model)
    return None


def longest_packed(config: PreTrainedConfig) -> int | None:
    """Return the most tokens (prompt and output) for which packed rows are exact: the sliding window; None for any."""
    windows = [value for name in ("sliding_window", "attention_window_size") if (value := config.to_dict().get(name))]
    return min(windows) if windows else None


class _GPTJPrefixAttention(GPTJAttention):
    """GPT-J's attention; stock instances change their class to it and keep their parameters and names."""

    def _attn(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not is_layout(attention_mask):
            return super()._attn(query, key, value, attention_mask)
        out = _attend(query, key, value, attention_mask, 1 / self.scale_attn)
        return out.transpose(1, 2), None  # [1, heads, t, d], as the caller expects


def _interface_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention for transformers: query [b, heads, t, d] to result [b, t, heads, d]."""
    if not is_layout(attention_mask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend(query, key, value, attention_mask, scale), None


def _fuse_activations(model: nn.Module) -> None:
    """Compute GELU's tanh form with one kernel: GPT-J's own takes nine, a quarter of a step on CPUs."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def is_layout(mask: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    """Return whether an attention mask is a packed row's layout."""
    return mask is not None and mask.dtype == torch.int64


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: torch.Tensor, scale: float
) -> torch.Tensor:
    """Compute prefix attention: [1, heads, t, d] to [1, t, heads, d]."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    query, key, value = (tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value))
    return prefix_attention(query, key, value, Layout.decode(layout), scale)[None]


def _unsuitable(model: PreTrainedModel) -> str | None:
    settings = model.config.to_dict()
    kinds = set(settings.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of type {', '.join(sorted(kinds))}"
    if not takes_positions(decoder_of(model)):
        return "it cannot be told the positions of its tokens"
    changed = [name for name in _CHANGES_SCORES if settings.get(name)]
    return f"its attention scores are changed by {', '.join(changed)}" if changed else None
