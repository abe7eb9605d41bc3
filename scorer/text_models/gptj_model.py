"""The two GPT-J reward models: the transformer, and one value head without bias.

Their files use weight names of old versions of transformers. Every name is accounted for: a weight left at its random
initialisation would give plausible rewards that mean nothing. The layers of a model that does not fit on one GPU can be
spread over several, which a row passes one after the other: no faster than one GPU with enough memory.
"""

import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPTJConfig, GPTJModel
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions

from brain_align.common.config.scorers import Dtype
from brain_align.common.errors import UserError, first_line, listed
from brain_align.common.nn.prefix.stock_models import is_layout
from brain_align.scorer.text_models.checkpoints import Checkpoint
from brain_align.scorer.text_models.formats import RewardFormat

Weights = dict[str, torch.Tensor]
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]

# Causal masks that transformers once kept among the weights.
_OLD_BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
_BLOCK = re.compile(r"transformer\.h\.(\d+)\.")
_EMBEDDING = "transformer.wte.weight"
# A reward model that was saved together with its original language model holds everything twice.
_COPY = "model."
_UNUSED_COPIES = ("model.lm_head.weight", "model.lm_head.bias")


class GPTJReward(nn.Module):
    """A GPT-J and its value head, under the names of the files; `TextValues` (text_values.py) reads it."""

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = GPTJModel(config)
        self.v_head = nn.Linear(config.n_embd, 1, bias=False)


def load_gptj_reward(checkpoint: Checkpoint, dtype: Dtype, devices: Sequence[str] = ("cpu",)) -> GPTJReward:
    """Load a reward model in the format of CarperAI's (TL;DR) or Dahoas' (HH).

    There are never two copies of the weights: files are mapped into memory, and the model adopts their tensors (on a
    CPU, if the type is the file's), or each one is converted and then released. The layers are spread over the devices,
    in order.

    Raises:
        UserError: a file cannot be read, or the files do not hold exactly the configuration's weights.
    """
    weights = _without_leftovers(_read(checkpoint.weights), checkpoint.format)
    with torch.device("meta"):
        model = GPTJReward(_config(checkpoint))
    _require_exactly(model.state_dict(), weights, checkpoint)
    blocks = layer_devices(model.config.n_layer, [torch.device(device) for device in devices])
    places = {name: _place(name, blocks) for name in weights}
    converted = {name: weights.pop(name).to(places[name], getattr(torch, dtype)) for name in list(weights)}
    model.load_state_dict(converted, assign=True)
    _fill_position_buffers(model, blocks)
    connect(model.transformer.h, blocks)
    return model.eval().requires_grad_(False)


def _place(name: str, blocks: Sequence[torch.device]) -> torch.device:
    """Return a weight's device: the embedding is with the first block, weights after the last block with that one."""
    if block := _BLOCK.match(name):
        return blocks[int(block[1])]
    return blocks[0] if name == _EMBEDDING else blocks[-1]


def _config(checkpoint: Checkpoint) -> GPTJConfig:
    if checkpoint.config is None:  # GPT-J-6B, spelt out, because the defaults of transformers may change
        return GPTJConfig(n_embd=4096, n_layer=28, n_head=16, rotary_dim=64, vocab_size=50400, n_positions=2048)
    try:
        config = GPTJConfig.from_json_file(checkpoint.config)
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint.config} cannot be read as a model configuration: {error}") from error
    if config.model_type != "gptj":
        raise UserError(f"{checkpoint.config} describes a {config.model_type} model, not a gptj one.")
    return config


def _read(files: Sequence[Path]) -> Weights:
    weights: Weights = {}
    for file in files:
        read = _read_file(file)
        if twice := sorted(read.keys() & weights.keys()):
            raise UserError(f"{file} holds weights that another shard holds, too: {listed(twice, 8)}.")
        weights |= read
    return weights


def _read_file(path: Path) -> Weights:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files of old PyTorch versions are not zip archives and cannot be mapped into memory.
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # an unpickler may raise anything on damaged data
        raise UserError(f"The reward model's weights {path} cannot be read: {first_line(error)}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"The reward model's weights {path} are not a dictionary of tensors.")
    return dict(weights)


def _without_leftovers(weights: Weights, format: RewardFormat) -> Weights:
    """Drop weights that are known to be superfluous, and no others."""
    if format.may_hold_copies:
        weights = {name: value for name, value in weights.items() if not _is_copy(name, weights)}
    return {name: value for name, value in weights.items() if not _OLD_BUFFER.fullmatch(name)}


def _is_copy(name: str, weights: Weights) -> bool:
    if not name.startswith(_COPY):
        return False
    original_name = name.removeprefix(_COPY)
    if name in _UNUSED_COPIES or _OLD_BUFFER.fullmatch(original_name):
        return True
    value, original = weights[name], weights.get(original_name)
    if original is None or original.shape != value.shape:
        return False
    return original.data_ptr() == value.data_ptr() or torch.equal(original, value)


def _require_exactly(expected: Weights, actual: Weights, checkpoint: Checkpoint) -> None:
    differing = [
        f"{name} is {list(actual[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(expected.keys() & actual.keys())
        if expected[name].shape != actual[name].shape
    ]
    found = {
        "missing": sorted(expected.keys() - actual.keys()),
        "unexpected": sorted(actual.keys() - expected.keys()),
        "of another shape": differing,
    }
    if problems := [f"{what}: {listed(names, 8)}" for what, names in found.items() if names]:
        config = checkpoint.config or "GPT-J-6B's configuration (there is no config.json beside it)"
        files = checkpoint.weights[0] if len(checkpoint.weights) == 1 else checkpoint.root
        raise UserError(f"The weights in {files} do not fit {config}; {'; '.join(problems)}.")


def _fill_position_buffers(model: GPTJReward, blocks: Sequence[torch.device]) -> None:
    """Fill the rotary positions, which are computed, not stored, and which a model made on the meta device lacks."""
    config = model.config
    positions = create_sinusoidal_positions(config.n_positions, config.rotary_dim or config.n_embd)
    on_device = {device: positions.to(device) for device in set(blocks)}
    for block, device in zip(model.transformer.h, blocks, strict=True):
        block.attn.embed_positions = on_device[device]
    filled = {f"transformer.h.{index}.attn.embed_positions" for index in range(len(blocks))}
    empty = {name for name, buffer in model.named_buffers() if buffer.is_meta} - filled
    assert not empty, f"this version of transformers has buffers that are not filled: {empty}"


def layer_devices(layers: int, devices: Sequence[torch.device]) -> list[torch.device]:
    """Return the device of each layer: one run of layers per device, of lengths that differ by at most one."""
    return [devices[layer * len(devices) // layers] for layer in range(layers)]


def connect(layers: Sequence[nn.Module], devices: Sequence[torch.device]) -> None:
    """Move each layer's input to the layer's device, for layers, called in order, that are on their devices already."""
    for layer, before, device in zip(layers, [devices[0], *devices], devices, strict=False):
        # Positions always come from the first device, hidden states only need moving where a run of layers begins.
        if device != devices[0] or device != before:
            layer.register_forward_pre_hook(_bring_to(device), with_kwargs=True)


def _bring_to(device: torch.device) -> Hook:
    def bring(
        _layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # A packed row's layout, which replaces the attention mask, is read on the CPU.
        kept = {"attention_mask"} if is_layout(named.get("attention_mask")) else set()
        return tuple(map(moved, args)), {name: value if name in kept else moved(value) for name, value in named.items()}

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return bring
