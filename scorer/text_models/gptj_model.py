"""The two GPT-J reward models: the transformer, and one bias-free value head.

Their files hold weights under the names of another time. Every name is accounted for: a weight that is left
at random, silently, gives plausible rewards that mean nothing.
"""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPTJConfig, GPTJModel
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions

from brain_align.common.errors import UserError, first_line
from brain_align.scorer.text_models.checkpoints import Checkpoint
from brain_align.scorer.text_models.formats import RewardFormat
from brain_align.scorer.text_models.layer_split import connect, layer_devices

Dtype = Literal["float32", "bfloat16", "float16"]
Weights = dict[str, torch.Tensor]

# Causal masks that transformers once kept among the weights.
_OLD_BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
_BLOCK = re.compile(r"transformer\.h\.(\d+)\.")
_EMBEDDING = "transformer.wte.weight"
# Where a reward model was saved with the language model that it was made from, everything is there twice.
_COPY = "model."
_UNUSED_COPIES = ("model.lm_head.weight", "model.lm_head.bias")


class GPTJReward(nn.Module):
    """A GPT-J and its value head, under the names of the files; what reads it is scorer/text_models/text_values.py."""

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = GPTJModel(config)
        self.v_head = nn.Linear(config.n_embd, 1, bias=False)


def load_gptj_reward(checkpoint: Checkpoint, dtype: Dtype, devices: Sequence[str] = ("cpu",)) -> GPTJReward:
    """Load a reward model in the format of CarperAI's (TL;DR) or Dahoas' (HH).

    There are never two copies of the weights: files are mapped into memory, and the model takes over their
    tensors (on a CPU, where the type is the file's), or each one is converted and then let go.

    Args:
        checkpoint: its files.
        dtype: of the weights.
        devices: over which the layers are spread, in their order.

    Raises:
        UserError: a file cannot be read, or they do not hold exactly the configuration's weights.
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
    """Where a weight goes: the embedding to the first block, what follows the last block to that one."""
    if block := _BLOCK.match(name):
        return blocks[int(block[1])]
    return blocks[0] if name == _EMBEDDING else blocks[-1]


def _config(checkpoint: Checkpoint) -> GPTJConfig:
    if checkpoint.config is None:
        return _gptj_6b()
    try:
        config = GPTJConfig.from_json_file(checkpoint.config)
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint.config} cannot be read as a model configuration: {error}") from error
    if config.model_type != "gptj":
        raise UserError(f"{checkpoint.config} describes a {config.model_type} model, not a gptj one.")
    return config


def _gptj_6b() -> GPTJConfig:
    # Spelt out rather than left to transformers' defaults, which are not ours to rely on.
    return GPTJConfig(n_embd=4096, n_layer=28, n_head=16, rotary_dim=64, vocab_size=50400, n_positions=2048)


def _read(files: Sequence[Path]) -> Weights:
    weights: Weights = {}
    for file in files:
        read = _read_file(file)
        if twice := sorted(read.keys() & weights.keys()):
            raise UserError(f"{file} holds weights that another of its shards holds, too: {_listed(twice)}.")
        weights |= read
    return weights


def _read_file(path: Path) -> Weights:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files of old PyTorch versions are no zip archives and cannot be mapped into memory.
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # an unpickler that is given rubbish raises anything
        raise UserError(f"The reward model's weights {path} cannot be read: {first_line(error)}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"The reward model's weights {path} are no dictionary of tensors.")
    return dict(weights)


def _without_leftovers(weights: Weights, format: RewardFormat) -> Weights:
    """Drop what is known to be superfluous, and nothing else."""
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
    problems = []
    if missing := sorted(expected.keys() - actual.keys()):
        problems.append(f"missing: {_listed(missing)}")
    if unexpected := sorted(actual.keys() - expected.keys()):
        problems.append(f"unexpected: {_listed(unexpected)}")
    differing = [
        f"{name} is {list(actual[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(expected.keys() & actual.keys())
        if expected[name].shape != actual[name].shape
    ]
    if differing:
        problems.append(f"of another shape: {_listed(differing)}")
    if problems:
        config = checkpoint.config or "GPT-J-6B's configuration (there is no config.json beside it)"
        files = checkpoint.weights[0] if len(checkpoint.weights) == 1 else checkpoint.root
        raise UserError(f"The weights in {files} do not fit {config}; {'; '.join(problems)}.")


def _listed(items: list[str], most: int = 8) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _fill_position_buffers(model: GPTJReward, blocks: Sequence[torch.device]) -> None:
    """Rotary positions are computed, not stored, so that a model made on the meta device has none yet."""
    config = model.config
    positions = create_sinusoidal_positions(config.n_positions, config.rotary_dim or config.n_embd)
    on_device = {device: positions.to(device) for device in set(blocks)}
    for block, device in zip(model.transformer.h, blocks, strict=True):
        block.attn.embed_positions = on_device[device]
    filled = {f"transformer.h.{index}.attn.embed_positions" for index in range(len(blocks))}
    empty = {name for name, buffer in model.named_buffers() if buffer.is_meta} - filled
    assert not empty, f"this version of transformers has buffers that are not filled: {empty}"
