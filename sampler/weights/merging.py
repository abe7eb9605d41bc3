"""Adapters added into the base model's weights, inside vLLM's processes, which then compute without adapters.

Each version is computed from the base model's own files, as W + s·B·A, so that nothing accumulates over versions. The
files are mapped into memory, so that the base is held once, by the page cache, for all workers of a machine. The sums
are computed where the model is, one matrix at a time: on one CPU thread a model of billions of weights takes minutes.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.model_loader import get_model_loader

from brain_align.common.nn.models.saving import name_in_model
from brain_align.common.policies import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from brain_align.sampler.engine.worker import WorkerExtension

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_ROWS = 64  # of each matrix, on which the rounding is estimated


@dataclass(frozen=True)
class _Change:
    """The matrices of one adapted layer; its weights change by `scaling * b @ a`."""

    a: torch.Tensor  # [rank, inputs]
    b: torch.Tensor  # [outputs, rank]
    scaling: float
    transposed: bool  # whether the model's files hold weights as [inputs, outputs] (PEFT's `fan_in_fan_out`)

    def added_to(
        self, weight: torch.Tensor, dtype: torch.dtype, device: torch.device, rounding: "Rounding"
    ) -> torch.Tensor:
        """Return the changed weights, on the device and in the model's dtype.

        They are rounded once, from base weights rounded as the learner's; products and sums are float32.
        """
        a, b = (matrix.to(device, torch.float32) for matrix in (self.a, self.b))
        left, right = (a.T, b.T) if self.transposed else (b, a)
        if weight.shape != (left.shape[0], right.shape[1]):
            shapes = f"{[*weight.shape]}, and the adapter was made for {[left.shape[0], right.shape[1]]}"
            raise ValueError(f"the model's weights have the shape {shapes}")
        base = weight.to(device).to(dtype).float()
        changed = torch.addmm(base, left, right, alpha=self.scaling).to(dtype)
        rounding.note(base[:_ROWS], changed[:_ROWS], self.scaling * (left[:_ROWS] @ right))
        return changed


@dataclass
class Rounding:
    """What rounding to the model's dtype has taken from an adapter, estimated on the first rows of each matrix."""

    wanted: float = 0.0  # sum of squares of the changes that the adapter stands for
    error: float = 0.0  # the same of how far the weights' changes are from these

    def note(self, base: torch.Tensor, changed: torch.Tensor, change: torch.Tensor) -> None:
        """Add some rows of a matrix: base weights (float32), changed ones, and the adapter's change (float32)."""
        self.wanted += change.square().sum().item()
        self.error += (changed.float() - base - change).square().sum().item()

    @property
    def share(self) -> float:
        """Return the size of the error relative to the change: 0 exact, 1 as if there were no adapter."""
        return math.sqrt(self.error / self.wanted) if self.wanted else 0.0


def merged(
    base: Iterable[tuple[str, torch.Tensor]],
    adapter: Path,
    dtype: torch.dtype,
    device: torch.device,
    name_of: Callable[[str], str],
    rounding: Rounding,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a model's weights with an adapter added to them.

    Args:
        base: names and tensors of the base model's files, in any order.
        adapter: the directory of the adapter, in PEFT's format.
        dtype: the dtype that the model computes in.
        device: the model's, where changed weights are computed and stay; all others are passed on as they are.
        name_of: the name that the adapter knows a tensor of the base model's files by.
        rounding: notes what is lost.

    Raises:
        ValueError: the adapter changes weights that the model does not have, or of another shape.
    """
    changes = _changes(adapter)
    prefixes = sorted({name.partition(".")[0] for name in changes})
    for name, weight in base:
        known = name_of(name)  # files of a decoder alone (Bloom's, GPT-2's) lack the first part
        found = next((one for one in (known, *(f"{prefix}.{known}" for prefix in prefixes)) if one in changes), None)
        yield name, weight if found is None else changes.pop(found).added_to(weight, dtype, device, rounding)
    if changes:
        raise ValueError(
            f"the adapter in {adapter} changes {len(changes)} weights that the model's files do not have; the first is "
            f"{min(changes)}"
        )


def _changes(directory: Path) -> dict[str, _Change]:
    """Read an adapter: the change of each weight, by its name in the model."""
    settings = PEFTHelper.from_local_dir(str(directory), None)
    transposed = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("fan_in_fan_out", False)
    matrices = load_file(directory / ADAPTER_WEIGHTS)
    modules = [name.removeprefix(_PREFIX).removesuffix(_A) for name in matrices if name.endswith(_A)]
    if len(matrices) != 2 * len(modules):
        raise ValueError(f"the adapter in {directory} has weights besides pairs of lora_A and lora_B")
    return {
        f"{module}.weight": _Change(
            matrices[f"{_PREFIX}{module}{_A}"],
            matrices[f"{_PREFIX}{module}{_B}"],
            settings.get_rank_and_scaling(module)[1],
            transposed,
        )
        for module in modules
    }


class MergingExtension(WorkerExtension):
    """Methods of workers that merge adapters into their weights."""

    device: torch.device  # vLLM's own

    def load_merged(self, adapter: str) -> float:
        """Replace the model's weights by those of the base model with an adapter added; return `Rounding.share`."""
        runner = self.model_runner
        config = runner.vllm_config
        base = get_model_loader(config.load_config).get_all_weights(config.model_config, runner.get_model())
        name_of = partial(name_in_model, config.model_config.hf_config)
        rounding = Rounding()
        weights = merged(base, Path(adapter), config.model_config.dtype, self.device, name_of, rounding)
        runner.reload_weights(weights_iterator=weights)
        return rounding.share
