"""A decoder whose layers lie on several devices, one run of them on each: for models that no one GPU has room for.

A row goes through the devices one after the other. That is no faster than one device with enough memory: replicas are
(`scorers.NAME.replicas`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from brain_align.common.nn.prefix.stock_models import is_layout

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]


def layer_devices(layers: int, devices: Sequence[torch.device]) -> list[torch.device]:
    """The device of each of a number of equal layers: runs that differ in length by one at most."""
    return [devices[layer * len(devices) // layers] for layer in range(layers)]


def connect(layers: Sequence[nn.Module], devices: Sequence[torch.device]) -> None:
    """Have each layer's input brought to where the layer is, for layers that are there already.

    Args:
        layers: called one after the other.
        devices: of each.
    """
    for layer, before, device in zip(layers, [devices[0], *devices], devices, strict=False):
        # Positions come from the first device every time, hidden states only where a run of layers begins.
        if device != devices[0] or device != before:
            layer.register_forward_pre_hook(_bring_to(device), with_kwargs=True)


def _bring_to(device: torch.device) -> Hook:
    def bring(
        _layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # A packed row's layout, which takes the place of the attention mask, is read on the CPU.
        kept = {"attention_mask"} if is_layout(named.get("attention_mask")) else set()
        return tuple(map(moved, args)), {name: value if name in kept else moved(value) for name, value in named.items()}

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return bring
