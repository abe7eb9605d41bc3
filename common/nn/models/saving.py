"""Whole models in HF format, which transformers and vLLM load, written tensor by tensor."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform, revert_weight_conversion

from brain_align.common.errors import UserError
from brain_align.common.nn.models.causal_lm import Dtype, load_causal_lm
from brain_align.common.nn.models.configuration import load_config
from brain_align.common.nn.models.shards import write_shards


def save_causal_lm(
    model: PreTrainedModel, directory: Path, weights: Iterable[tuple[str, torch.Tensor]] | None = None
) -> None:
    """Write a model, loaded by `load_causal_lm`, into an existing directory; the same weights give the same bytes.

    The files have the names and tensors of transformers' own `save_pretrained`: all parameters and persistent buffers,
    tied ones once, under the names that the model's own files have.

    Where the model itself has only a part of its weights (ZeRO-3), give all, by its own names and in its dtype.

    Raises:
        UserError: as for `check_saveable`.
    """
    check_saveable(model)
    own = _own_tensors(model)
    names = _names_in_files(model, own)
    _written_config(model).save_pretrained(directory)
    write_shards(_renamed(own, {} if weights is None else weights, names), directory, "model")


def check_saveable(model: PreTrainedModel) -> None:
    """Refuse a model that cannot be written.

    Raises:
        UserError: its weights cannot be written tensor by tensor.
    """
    if reason := unsaveable(model):
        raise UserError(
            f"{reason}; train an adapter without quantisation (policy.method=lora), and export it without --merge."
        )


def unsaveable(model: PreTrainedModel) -> str | None:
    """Return why a model, which needs no weights, cannot be written: its files hold merged experts apart, say."""
    names = list(_own_tensors(model))
    for converter in _conversions(model):
        if isinstance(converter, WeightConverter) and _converts(converter, names):
            return (
                f"The files of a {model.config.model_type} model ({model.name_or_path}) hold its weights in another "
                f"form than the model does, so they cannot be written one by one"
            )
    return None


def load_dequantized(source: str, dtype: Dtype) -> PreTrainedModel:
    """Load a model, quantise it to NF4, and convert its weights back to `dtype`.

    It has the quantised model's log-probabilities without 4-bit kernels (vLLM has none for bitsandbytes).

    Raises:
        UserError: the model cannot be loaded.
    """
    model = load_causal_lm(source, dtype, "cpu", "nf4")
    return model.dequantize(dtype=getattr(torch, dtype))


def name_in_model(config: PreTrainedConfig, name: str) -> str:
    """Return what transformers call a tensor of a model's files, as adapters do: Qwen3.5's files have a prefix more."""
    for kind in (*(config.architectures or ()), config.model_type):
        if (conversions := get_checkpoint_conversion_mapping(kind)) is not None:
            for renaming in conversions:
                if isinstance(renaming, WeightRenaming):
                    name = renaming.rename_source_key(name)[0]
            break
    return name


def _written_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the configuration as it was read, before loading changed dropout and cache, but true of the model.

    Of a model with several parts, only the text model is loaded and written.
    """
    config = load_config(model.name_or_path)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if output is not None and embedding is not None:
        # A file may hold an output layer of its own though its configuration says that it is the embedding.
        config.tie_word_embeddings = output.weight is embedding.weight
    return config


def _own_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return all parameters and persistent buffers by name; tied ones once, under the first of their names."""
    found: dict[object, tuple[str, torch.Tensor]] = {}
    skipped = model._keys_to_ignore_on_save or ()
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor) and name not in skipped:
            # Partitioned parameters (ZeRO-3) and those on the "meta" device have no storage to tell them apart by.
            in_memory = value.numel() and not value.is_meta
            place = (value.device, value.data_ptr(), value.shape, value.stride()) if in_memory else id(value)
            found.setdefault(place, (name, value))
    return dict(found.values())


def _renamed(
    own: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
    names: Mapping[str, str],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the given weights, then what else the model has (its buffers), under the names in files.

    Raises:
        RuntimeError: the given weights are not the model's, or not all that are partitioned.
    """
    given: set[str] = set()
    for name, value in weights.items() if isinstance(weights, Mapping) else weights:
        if name not in own or name in given:
            raise RuntimeError(f"{name} is no weight of the model, or was given twice")
        given.add(name)
        yield names[name], value
    for name, value in own.items():
        if name not in given:
            if hasattr(value, "ds_id") or value.is_meta:
                raise RuntimeError(f"{name} was not given, and this process does not hold it")
            yield names[name], value


def _names_in_files(model: PreTrainedModel, own: Iterable[str]) -> dict[str, str]:
    """Return the names in the model's own files, which transformers may have changed in loading, by the model's."""
    names = list(own)
    numbered = {name: torch.tensor(place) for place, name in enumerate(names)}
    reverted = revert_weight_conversion(model, numbered)
    in_files = {names[int(place)]: name for name, place in reverted.items()}
    if len(in_files) != len(names):
        raise RuntimeError(f"the names of {len(names)} weights of the model became {len(in_files)} names for its files")
    return in_files


def _conversions(model: PreTrainedModel) -> list[WeightTransform]:
    """Return what transformers do to names and tensors when they load such a model, and did to this one."""
    return [
        *get_model_conversion_mapping(model, add_legacy=False),
        *(getattr(model, "_weight_conversions", None) or []),
    ]


def _converts(converter: WeightConverter, names: Iterable[str]) -> bool:
    """Return whether a converter has made, or would make, one of the model's weights."""
    try:
        reverse = converter.reverse_transform()
    except (NotImplementedError, ValueError):  # it cannot be undone
        return True
    return any(reverse.rename_source_key(name)[1] is not None for name in names)
