"""Rotary embeddings whose frequencies transformers choose by the longest text of each forward pass (LongRoPE).

A text's log-probabilities would then depend on its neighbours. As in vLLM, the window of the run decides instead: the
most tokens that prompt and output may have. Without a window, texts may be no longer than the length at which the
frequencies change.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from brain_align.common.nn.models.configuration import context_length

_FIXED = "brain_window"
"""Attribute of modules whose frequencies are those of a window."""


def rotary_switch(config: PreTrainedConfig) -> int | None:
    """Return the length of texts beyond which a model's rotary frequencies are others; None if there is none.

    (NTK scaling, the other kind that depends on lengths, changes nothing within the model's context.)
    """
    settings = getattr(config, "rope_parameters", None) or {}
    sections = [settings, *(value for value in settings.values() if isinstance(value, dict))]
    lengths = [one["original_max_position_embeddings"] for one in sections if one.get("rope_type") == "longrope"]
    return min(lengths, default=None)


def fix_rotary(model: PreTrainedModel, window: int) -> None:
    """Let a model's rotary frequencies be those of texts of `window` tokens, whatever the lengths of its texts."""
    switch = rotary_switch(model.config)
    if switch is None or window <= switch:
        return  # `longest_text` allows no text that would change them
    for module in model.modules():
        if hasattr(module, "rope_type") and not hasattr(module, _FIXED):
            setattr(module, _FIXED, window)
            module.register_forward_pre_hook(_with_last_position, with_kwargs=True)
            module.register_forward_hook(_without_last_position)


def longest_text(model: PreTrainedModel) -> int:
    """Return the most tokens (prompt and output) of a text whose states are the same alone and beside others."""
    switch = rotary_switch(model.config)
    if switch is None or any(hasattr(module, _FIXED) for module in model.modules()):
        return context_length(model.config)
    return min(switch, context_length(model.config))


def _with_last_position(
    module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Append the window's last position to those asked for: the frequencies are chosen by the largest position."""
    named = dict(named)
    if "position_ids" not in named:
        named["position_ids"], args = args[1], (args[0], *args[2:])
    positions = named["position_ids"]
    named["position_ids"] = torch.cat([positions, torch.full_like(positions[..., :1], getattr(module, _FIXED) - 1)], -1)
    return args, named


def _without_last_position(_module: nn.Module, _args: tuple[Any, ...], found: Any) -> Any:
    return tuple(part[..., :-1, :] for part in found)  # cosines and sines: [rows, positions, d]
