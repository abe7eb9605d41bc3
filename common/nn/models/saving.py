"""Whole models in HF format, which transformers and vLLM load, written tensor by tensor."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from brain_align.common.errors import UserError
from brain_align.common.nn.models.causal_lm import Dtype, load_causal_lm, load_config
from brain_align.common.nn.models.shards import write_shards


def save_causal_lm(
    model: PreTrainedModel, directory: Path, weights: Iterable[tuple[str, torch.Tensor]] | None = None
) -> None:
    """Write a model, loaded by `load_causal_lm`, into an existing directory; the same weights give the same bytes.

    Where the model itself has only a part of its weights (ZeRO-3), give all, by its own names and in its dtype.

    Raises:
        UserError: as for `check_saveable`.
    """
    check_saveable(model)
    config = load_config(model.name_or_path)  # with the original dropout and cache settings
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(directory)
    write_shards(model.named_parameters() if weights is None else weights, directory, "model")


def check_saveable(model: PreTrainedModel) -> None:
    """Refuse a model whose files hold its weights in another form than the model does (merged experts, say).

    Raises:
        UserError: its weights cannot be written tensor by tensor.
    """
    if get_model_conversion_mapping(model, add_legacy=False):
        raise UserError(
            f"The files of a {model.config.model_type} model ({model.name_or_path}) hold its weights in another form "
            f"than the model does, so they cannot be written one by one; train an adapter without quantisation "
            f"(policy.method=lora), and export it without --merge."
        )


def load_dequantized(source: str, dtype: Dtype) -> PreTrainedModel:
    """Load a model, quantise it to NF4, and convert its weights back to `dtype`.

    It has the quantised model's log-probabilities without 4-bit kernels (vLLM has none for bitsandbytes).

    Raises:
        UserError: the model cannot be loaded.
    """
    model = load_causal_lm(source, dtype, "cpu", "nf4")
    return model.dequantize(dtype=getattr(torch, dtype))
