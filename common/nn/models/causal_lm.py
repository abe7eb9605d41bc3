"""Loading of causal language models and their tokenizers, the same for prior, policy and evaluation."""

import re
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from brain_align.common.errors import UserError, listed
from brain_align.common.nn.models.configuration import has_other_parts, load_config, names_in_parts
from brain_align.common.nn.models.exactness import check_exact
from brain_align.common.nn.models.rotary import fix_rotary
from brain_align.common.nn.models.shards import check_shards
from brain_align.common.nn.models.sources import find_source

Dtype = Literal["float32", "bfloat16"]
Quantization = Literal["nf4"]

_CONSTANT = re.compile(
    r"(attn|attention)\.((masked_)?bias|causal_mask|embed_positions)$"
    r"|(^|[._])(inv_freq|(cos|sin)_cached|position_ids|embed_positions\.weights)$"
)
"""Constants that old versions of transformers wrote besides weights: masks, rotary frequencies, positions."""


def load_causal_lm(
    source: str,
    dtype: Dtype,
    device: str | torch.device = "cpu",
    quantization: Quantization | None = None,
    *,
    window: int | None = None,
) -> PreTrainedModel:
    """Load a causal language model for exact log-probabilities: eval mode, no dropout, no cache.

    Dropout is removed, not only switched off, so that a later `train()` (which gradient checkpointing needs) leaves the
    log-probabilities unchanged. Of a model that also reads images or sound, the text model alone is loaded.

    Args:
        source: HF directory, read without network access, or hub id.
        dtype: of the weights, and of the computation with quantised ones.
        device: for the weights.
        quantization: nf4: all linear layers except the output layer in 4 bits, doubly quantised.
        window: the most tokens that prompt and output will have; it decides about rotary embeddings whose frequencies
            depend on it (`rotary.py`).

    Raises:
        UserError: the directory is missing, does not hold a causal language model, lacks some of its weights, or holds
            a quantised model; or the model computes logits in a way that `common.nn.logprobs` does not reproduce.
    """
    place = find_source(source, "The language model")
    config = load_config(source)
    _refuse_quantized(config, source)
    _remove_dropout(config)
    config.use_cache = False
    check_shards(source)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            place.name,
            config=config,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=not is_deepspeed_zero3_enabled(),  # `_refuse_incomplete` names them
            key_mapping=names_in_parts(source, config),
            **place.arguments(),
            **_placement(dtype, device, quantization),
        )
    except Exception as error:  # a user's files may bring anything about in transformers' code
        raise place.failure("language model", error) from error
    refuse_incomplete(model, report, source)
    model.name_or_path = source
    if has_other_parts(source, config):
        model._weight_conversions = None  # it is saved as the text-only model that it now is
    model.eval()
    if is_deepspeed_zero3_enabled():
        _restore_buffers(model)
        _fix_rotary(model, window)
        return model  # partitioned: no forward pass before DeepSpeed's engine exists
    if quantization is None:
        model.to(device)
    else:
        _compute_alike(model)
    check_exact(model, source)
    _fix_rotary(model, window)
    return model


def _placement(dtype: Dtype, device: str | torch.device, quantization: Quantization | None) -> dict[str, Any]:
    """Return arguments of `from_pretrained` that quantise and place; quantised weights cannot be moved afterwards."""
    if quantization is None:
        return {}
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from an HF directory without network access, or by hub id.

    Raises:
        UserError: the directory is missing, or the tokenizer could not be loaded.
    """
    place = find_source(source, "The tokenizer")
    try:
        # With vLLM's mistral-common installed, Mistral's models would get a tokenizer without a chat template.
        return AutoTokenizer.from_pretrained(place.name, mistral_format=False, **place.arguments())
    except Exception as error:  # a user's files may bring anything about in transformers' code
        raise place.failure("tokenizer", error) from error


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, where: str) -> list[str]:
    """Refuse a tokenizer, which errors call `where`, that does not fit the model.

    Returns:
        A note on added tokens for which the model has no embedding, as some models' own tokenizers have them: a text
            with one of them cannot be used.

    Raises:
        UserError: other tokens have no embedding in the model, or there is no end-of-text token.
    """
    rows, vocabulary = config.get_text_config().vocab_size, tokenizer.get_vocab()
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    if not {token for _, token in beyond} <= tokenizer.get_added_vocab().keys():
        raise UserError(
            f"The tokenizer in {where} does not fit the model: it has token ids up to {beyond[-1][0]}, the "
            f"model's vocabulary has {rows} entries."
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer in {where} has no end-of-text token; set its eos_token.")
    if tokenizer.eos_token_id >= rows:
        raise UserError(
            f"The tokenizer in {where} ends texts with token {tokenizer.eos_token_id}, but the model's vocabulary has "
            f"{rows} entries; give the tokenizer that the model was trained with."
        )
    if not beyond:
        return []
    names = ", ".join(repr(token) for _, token in beyond[:3]) + (" …" if len(beyond) > 3 else "")
    return [f"note: the model has {rows} tokens, its tokenizer also {names}: texts with these are refused"]


def _compute_alike(model: PreTrainedModel) -> None:
    """Switch off the path that bitsandbytes takes on CPUs without gradients.

    It rounds the scales of the weights to bfloat16, so that prior and policy would differ.
    """
    from bitsandbytes.nn import Linear4bit  # takes seconds, which only quantised models spend

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _refuse_quantized(config: PreTrainedConfig, source: str) -> None:
    if hasattr(config, "quantization_config"):
        raise UserError(
            f"The model in {source} is quantised already; give the model that it was made from, and set "
            f"policy.quantization=nf4 to train it in 4 bits."
        )


def _remove_dropout(config: PreTrainedConfig) -> None:
    # The names differ: attention_dropout, hidden_dropout (NeoX), resid_pdrop, embd_pdrop, attn_pdrop (GPT-J).
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)


def refuse_incomplete(model: PreTrainedModel, report: dict[str, Any], source: str) -> None:
    """Refuse a model whose files lack weights or have others, given what transformers report on its loading.

    Transformers only warn here: they give weights that are missing random values, and drop those that they do not know.
    Constants, and what lies beside the model (another head, other parts, layers that predict further tokens), are left.

    Raises:
        UserError: weights are missing, of another shape, or of layers that the model does not have so.
    """
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"The model in {source} lacks {len(missing)} of its weights: {listed(missing)}.")
    if other := sorted(report.get("mismatched_keys") or ()):
        shapes = [f"{name} is {list(there)}, expected {list(here)}" for name, there, here in other]
        raise UserError(f"The weights in {source} do not fit its config.json: {listed(shapes)}.")
    if unused := sorted(name for name in report["unexpected_keys"] if _is_of_layers(model, name)):
        raise UserError(
            f"{source} holds {len(unused)} weights that a {model.config.model_type} model with its config.json has no "
            f"use for ({listed(unused)}), so its values would be wrong; give the config.json that belongs to them."
        )


def _is_of_layers(model: PreTrainedModel, name: str) -> bool:
    """Return whether an unknown weight is of a layer of the model, or of one more: leaving it changes values."""
    if _CONSTANT.search(name):
        return False
    owner: nn.Module = model
    repeated = False
    for part in name.split("."):
        if part not in owner._modules:
            break
        repeated = repeated or isinstance(owner, nn.ModuleList)
        owner = owner._modules[part] or nn.Identity()
    if isinstance(owner, nn.ModuleList):
        return not getattr(model.config, "num_nextn_predict_layers", None)  # such layers follow the last one
    return repeated or next(owner.children(), None) is None


def _fix_rotary(model: PreTrainedModel, window: int | None) -> None:
    if window is not None:
        fix_rotary(model, window)


def _restore_buffers(model: PreTrainedModel) -> None:
    """Compute constants (rotary frequencies) again in float32, since DeepSpeed rounds them where it partitions."""
    for module in model.modules():
        constants = module._non_persistent_buffers_set  # other buffers were read from the model's files
        buffers = module.named_buffers(recurse=False)
        rounded = [name for name, value in buffers if name in constants and value.dtype == torch.bfloat16]
        for name in rounded:
            module.register_buffer(name, module.get_buffer(name).float(), persistent=False)
        if rounded:
            model._init_weights(module)  # leaves loaded weights unchanged
