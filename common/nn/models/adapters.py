"""LoRA adapters, created, loaded and saved in PEFT's format, which vLLM reads too."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
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
ALL_LINEAR = "all-linear"
"""The target that stands for all linear layers but the output layer, as in PEFT."""

_ALL_WEIGHTS = {"policy": "policy.method=full", "prepare": "prepare.adapter=null"}
"""What trains a whole model instead, by section of the recipe."""

_MISMATCH = re.compile(r"size mismatch for (\S+): .*?Size\(\[([\d, ]*)\]\) .*?Size\(\[([\d, ]*)\]\)")
"""Torch's words for a weight of another shape."""

_PICKLED = "adapter_model.bin"
_VARIANTS = (
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Settings of adapters that compute something other than W + s·B·A."""


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
    except ValueError as error:  # layers that PEFT knows not to bear an adapter (Mamba's)
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
    offline, wanted = hub_failure() is not None, [CONFIG, WEIGHTS]
    try:
        return Path(
            snapshot_download(place.name, revision=place.revision, allow_patterns=wanted, local_files_only=offline)
        )
    except Exception as error:  # of the hub, or of the network
        raise place.failure("adapter", error) from error


def read_adapter_config(directory: Path) -> LoraConfig:
    """Read an adapter's configuration.

    Raises:
        UserError: it is missing, or not that of a LoRA adapter that vLLM and training support; or the weights are
            missing.
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
        "a rank above 512": max([config.r, *config.rank_pattern.values()]) > 512,
        "bias": config.bias != "none",
        # PiSSA and similar methods also change the base weights when such an adapter is attached.
        "init_lora_weights": config.init_lora_weights not in (True, False, "gaussian", "orthogonal", "eva"),
        **{name: getattr(config, name, None) for name in _VARIANTS},
    }
    found = [name for name, is_set in unsupported.items() if is_set]
    if found:
        raise UserError(
            f"The adapter in {directory} uses {', '.join(found)}, which vLLM cannot sample from; merge it into the "
            f"model instead."
        )
    if not (directory / WEIGHTS).exists():
        old = f"only {_PICKLED}, which PEFT before 0.7 wrote" if (directory / _PICKLED).exists() else "no weights"
        raise UserError(
            f"The adapter in {directory} has {old}, and no {WEIGHTS}; write it with a newer PEFT: "
            f"PeftModel.from_pretrained(base, {str(directory)!r}).save_pretrained(DIR)."
        )
    return config


def unmergeable(directory: Path) -> str | None:
    """Return why an adapter, which `read_adapter_config` accepts, cannot be added to the weights of linear layers."""
    with safe_open(directory / WEIGHTS, framework="pt") as file:
        others = sorted(name for name in file.keys() if not name.endswith((".lora_A.weight", ".lora_B.weight")))  # noqa: SIM118
    return f"the adapter in {directory} adapts embeddings ({others[0]})" if others else None


def load_adapter(model: PreTrainedModel, directory: Path, *, trainable: bool = False) -> PeftModel:
    """Attach an adapter that `save_adapter` or PEFT itself has written; the model is wrapped, not copied.

    Raises:
        UserError: the directory does not hold an adapter, or holds one of another model.
    """
    config = read_adapter_config(directory)
    config.lora_dropout = 0.0
    config.inference_mode = not trainable
    try:
        saved = load_file(directory / WEIGHTS)
        peft_model = PeftModel.from_pretrained(model, str(directory), config=config, is_trainable=trainable)
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


def merged(model: PeftModel) -> PreTrainedModel:
    """Return the model with its adapter's changes added to its own weights.

    Where the output layer is the embedding, and the adapter changes what is read, the two part.
    """
    base = model.get_base_model()
    embedding, output = base.get_input_embeddings(), base.get_output_embeddings()
    if isinstance(embedding, BaseTunerLayer) and output.weight is embedding.weight:
        output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=False)
    return model.merge_and_unload()


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
    if (base := settings["base_model_name_or_path"]) is not None:
        settings |= _base(base, settings.get("revision"))
    (directory / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _base(source: str, revision: str | None) -> dict[str, str | None]:
    """Return what an adapter's configuration says of its base model: PEFT keeps a revision apart from the name."""
    if Path(source).is_dir():  # found from any directory, not only from where the run began
        return {"base_model_name_or_path": str(Path(source).absolute()), "revision": None}
    name, _, given = source.partition("@")
    return {"base_model_name_or_path": name, "revision": given or revision}


def checked_targets(model: PreTrainedModel, targets: list[str], section: str = "policy") -> list[str]:
    """Return the names of the layers that get an adapter, refusing those that a model lacks or that can have none.

    `section` of the recipe names them.

    Raises:
        UserError: naming the layers that the model has.
    """
    layers = dict(decoder_of(model).named_modules())
    linear = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
    if targets == [ALL_LINEAR] and linear:
        return sorted({name.rpartition(".")[2] for name in linear})
    absent = [target for target in targets if not _named(target, linear)]
    if not absent:
        return sorted(targets)
    kind = f"a {model.config.model_type} model"
    transposed = [name for name, module in layers.items() if isinstance(module, Conv1D)]
    if not linear or any(_named(target, transposed) for target in absent):
        raise UserError(
            f"{section}.adapter.targets: the layers of {kind} ({_last_names(transposed)}) are Conv1D layers, which get "
            f"no adapters here; {_ALL_WEIGHTS[section]} trains it."
        )
    raise UserError(
        f"{section}.adapter.targets: {kind} has no {', '.join(absent)}; it has {_last_names(linear)} (or "
        f"{ALL_LINEAR} alone, for all of them)."
    )


def _not_loaded(directory: Path, error: Exception) -> UserError:
    reason = first_line(error)
    if shapes := [f"{name} is [{there}] there, [{here}] here" for name, there, here in _MISMATCH.findall(str(error))]:
        reason = (
            f"its weights do not fit the model or its own configuration: {listed(shapes)}; give the model that it was "
            f"made with, or merge it into that model"
        )
    return UserError(f"The adapter in {directory} could not be loaded: {reason}.")


def _named(target: str, layers: Iterable[str]) -> bool:
    return any(f".{name}".endswith(f".{target}") for name in layers)


def _last_names(layers: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in layers}))


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
