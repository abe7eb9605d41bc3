"""LoRA adapters, created, loaded and saved in PEFT's format, which vLLM reads too."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.errors import UserError, first_line, listed
from brain_align.common.nn.models.exactness import decoder_of
from brain_align.common.nn.models.sources import find_source, hub_failure
from brain_align.common.policies import ADAPTER_CONFIG, ADAPTER_WEIGHTS

WEIGHTS, CONFIG = ADAPTER_WEIGHTS, ADAPTER_CONFIG
_WEIGHTS = (WEIGHTS, "adapter_model.bin")

ALL_LINEAR = "all-linear"
"""The target that stands for all linear layers but the output layer, as in PEFT."""

_MISMATCH = re.compile(r"size mismatch for (\S+): .*?Size\(\[([\d, ]*)\]\) .*?Size\(\[([\d, ]*)\]\)")
"""What torch says of a weight of another shape."""


def attach_new_adapter(model: PreTrainedModel, settings: AdapterSection, seed: int) -> PeftModel:
    """Attach a trainable adapter that changes nothing yet (B = 0), so that the policy starts as the prior.

    The model is wrapped, not copied, and its own weights are frozen. The values of A depend on the seed alone.

    Raises:
        UserError: the model lacks one of the target modules.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        target_modules=checked_targets(model, settings.targets),
        lora_dropout=0.0,
        bias="none",
    )
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:  # layers that it knows not to bear an adapter (Mamba's)
        raise UserError(f"policy.adapter.targets: {first_line(error)}") from error
    _initialise(peft_model, seed)
    return peft_model


def find_adapter(source: str) -> Path:
    """Return the directory of an adapter, downloaded first if `source` is a hub id.

    Raises:
        UserError: the directory or repository does not exist.
    """
    place = find_source(source, "The adapter")
    if place.local:
        return Path(source)
    offline = hub_failure() is not None
    try:
        patterns = [CONFIG, *_WEIGHTS]
        return Path(
            snapshot_download(place.name, revision=place.revision, allow_patterns=patterns, local_files_only=offline)
        )
    except Exception as error:  # of the hub, or of the network
        raise place.failure("adapter", error) from error


def adapter_weights(directory: Path) -> Path:
    """Return the file of an adapter's weights; old versions of PEFT wrote another one.

    Raises:
        UserError: the directory has neither.
    """
    found = next((directory / name for name in _WEIGHTS if (directory / name).is_file()), None)
    if found is None:
        whole = " It holds a whole model: set policy.model to it." if (directory / "config.json").is_file() else ""
        raise UserError(f"The adapter in {directory} could not be loaded: it has no {WEIGHTS}.{whole}")
    return found


def read_adapter_config(directory: Path) -> LoraConfig:
    """Read an adapter's configuration.

    Raises:
        UserError: it is missing, or not that of a LoRA adapter that vLLM and training support.
    """
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except Exception as error:  # a user's file may bring anything about in PEFT's code
        raise UserError(f"The adapter in {directory} could not be loaded: {first_line(error)}") from error
    if not isinstance(config, LoraConfig):
        raise UserError(f"The adapter in {directory} is of type {config.peft_type}; only LoRA adapters are supported.")
    unsupported = {
        "use_dora": config.use_dora,
        "modules_to_save": config.modules_to_save,
        "trainable_token_indices": config.trainable_token_indices,
        "layer_replication": config.layer_replication,
        "a rank above 512": config.r > 512,
        "bias": config.bias != "none",
        # PiSSA and similar methods also change the base weights when such an adapter is attached.
        "init_lora_weights": config.init_lora_weights not in (True, False, "gaussian", "eva", "orthogonal"),
        "lora_bias": config.lora_bias,
        "alora_invocation_tokens": config.alora_invocation_tokens,
        "use_qalora": config.use_qalora,
        "use_bdlora": config.use_bdlora,
    }
    found = [name for name, is_set in unsupported.items() if is_set]
    if found:
        raise UserError(
            f"The adapter in {directory} uses {', '.join(found)}, which vLLM cannot sample from; merge it into the "
            f"model instead."
        )
    adapter_weights(directory)
    return config


def load_adapter(model: PreTrainedModel, directory: Path, *, trainable: bool = False) -> PeftModel:
    """Attach an adapter that `save_adapter` or PEFT itself has written; the model is wrapped, not copied.

    Raises:
        UserError: the directory does not hold an adapter, or holds one of another model.
    """
    config = read_adapter_config(directory)
    config.lora_dropout = 0.0
    config.inference_mode = not trainable
    try:
        saved = _read_weights(adapter_weights(directory))
        peft_model = PeftModel.from_pretrained(model, str(directory), config=config, is_trainable=trainable)
    except UserError:
        raise
    except Exception as error:  # a user's files may bring anything about in PEFT's code
        raise _not_loaded(directory, error) from error
    # PEFT only warns about these, and leaves missing weights at random values.
    differing = sorted(set(saved) ^ set(get_peft_model_state_dict(peft_model)))
    if differing:
        raise UserError(
            f"The adapter in {directory} was made for another model: {len(differing)} weights are missing or "
            f"unexpected, the first is {differing[0]}."
        )
    if isinstance(peft_model.get_base_model().get_output_embeddings(), BaseTunerLayer):
        raise UserError(
            f"The adapter in {directory} adapts the output layer, which is computed in tiles without adapters; merge "
            f"the adapter into the model first."
        )
    return peft_model


def save_adapter(model: PeftModel, directory: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the adapter's two files into an existing directory; the same weights give the same bytes.

    PEFT's own `save_pretrained` writes the target modules in the order of a set, which differs between processes. Give
    the adapter's weights, by parameter name, where the model itself has only a part of them (ZeRO-3).
    """
    weights = get_peft_model_state_dict(model, state_dict=weights)
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    settings = model.active_peft_config.to_dict() | {"inference_mode": True}
    settings = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    base = settings["base_model_name_or_path"]
    if base is not None and Path(base).is_dir():  # found from any directory, not only from where the run began
        settings["base_model_name_or_path"] = str(Path(base).absolute())
    (directory / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def checked_targets(model: PreTrainedModel, targets: list[str]) -> list[str]:
    """Return the names of the layers that get an adapter; the model may be without weights (on the "meta" device).

    Raises:
        UserError: the model lacks one of them, or it is not a layer that can have one.
    """
    layers = {name: type(module) for name, module in decoder_of(model).named_modules()}
    linear = {name for name, kind in layers.items() if issubclass(kind, nn.Linear)}
    possible = sorted({name.rpartition(".")[2] for name in linear})
    if targets == [ALL_LINEAR] and possible:
        return possible
    absent = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if not absent:
        return sorted(targets)
    kind = f"a {model.config.model_type} model"
    if not possible:
        others = "; its layers are Conv1D, which get no adapters here" if Conv1D in layers.values() else ""
        raise UserError(
            f"policy.adapter.targets: {kind} has no linear layers{others}; set policy.method=full, which trains it."
        )
    raise UserError(
        f"policy.adapter.targets: {kind} has no {', '.join(absent)}; it has {', '.join(possible)} "
        f"(or {ALL_LINEAR} for all of them)."
    )


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _not_loaded(directory: Path, error: Exception) -> UserError:
    shapes = [f"{name} is [{there}] there, [{here}] here" for name, there, here in _MISMATCH.findall(str(error))]
    reason = first_line(error)
    if shapes:
        reason = (
            f"its weights do not fit the model or its own configuration: {listed(shapes)}; give the model that it was "
            f"made with, or merge it into that model"
        )
    return UserError(f"The adapter in {directory} could not be loaded: {reason}")


@torch.no_grad()
def _initialise(model: PeftModel, seed: int) -> None:
    """Draw A from PEFT's own distribution (B = 0 already) with a separate generator.

    The values then depend neither on the model's device nor on other uses of the global generators.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        if ".lora_A." in name:
            value = torch.empty(weight.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
            weight.copy_(value)
