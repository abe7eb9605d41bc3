"""Loading of causal language models and their tokenizers, the same for prior, policy and evaluation."""

from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from brain_align.common.errors import UserError, first_line
from brain_align.common.nn.models.sources import is_local

Dtype = Literal["float32", "bfloat16"]
Quantization = Literal["nf4"]


def load_causal_lm(
    source: str, dtype: Dtype, device: str | torch.device = "cpu", quantization: Quantization | None = None
) -> PreTrainedModel:
    """Load a causal language model for exact log-probabilities: eval mode, no dropout, no cache.

    Dropout is removed, not only switched off, so that a later `train()` (which gradient checkpointing needs) leaves the
    log-probabilities unchanged.

    Args:
        source: HF directory, read without network access, or hub id.
        dtype: of the weights, and of the computation with quantised ones.
        device: for the weights.
        quantization: nf4: all linear layers except the output layer in 4 bits, doubly quantised.

    Raises:
        UserError: the directory is missing, does not hold a causal language model, lacks some of its weights, or holds
            a quantised model; or the model computes logits in a way that `common.nn.logprobs` does not reproduce.
    """
    local = is_local(source, "The language model")
    config = load_config(source)
    _refuse_quantized(config, source)
    _remove_dropout(config)
    config.use_cache = False
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=getattr(torch, dtype),
            local_files_only=local,
            output_loading_info=True,
            **_placement(dtype, device, quantization),
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"No language model could be loaded from {source}: {first_line(error)}") from error
    _refuse_incomplete(report, source)
    model.eval()
    if is_deepspeed_zero3_enabled():
        _restore_buffers(model)
        return model  # partitioned: no forward pass before DeepSpeed's engine exists
    if quantization is None:
        model.to(device)
    else:
        _compute_alike(model)
    check_logits(model, source)
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


def load_config(source: str) -> PreTrainedConfig:
    """Load a model's configuration alone, from an HF directory without network access, or by hub id.

    Raises:
        UserError: the directory is missing, or the configuration could not be loaded.
    """
    return _from_pretrained(AutoConfig, source, "model configuration")


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from an HF directory without network access, or by hub id.

    Raises:
        UserError: the directory is missing, or the tokenizer could not be loaded.
    """
    return _from_pretrained(AutoTokenizer, source, "tokenizer")


def _from_pretrained(auto: type[AutoConfig | AutoTokenizer], source: str, what: str) -> Any:
    local = is_local(source, f"The {what}")
    try:
        return auto.from_pretrained(source, local_files_only=local)
    except (OSError, ValueError, RuntimeError) as error:
        where = source if local else f"{source}, which is not a local directory and so must be a hub id"
        raise UserError(f"No {what} could be loaded from {where}: {first_line(error)}") from error


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


def context_length(config: PreTrainedConfig) -> int:
    """Return the largest number of tokens (prompt and output together) that a model can read.

    Raises:
        UserError: the configuration does not state it.
    """
    # Configurations with another name for it (GPT-J: n_positions) map this one to theirs.
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise UserError(f"A {config.model_type} model's configuration must state max_position_embeddings.")
    return length


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


def _refuse_incomplete(report: dict[str, Any], source: str) -> None:
    # transformers only warn here, and give missing weights random values.
    missing = sorted(report["missing_keys"])
    if missing:
        names = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise UserError(f"The model in {source} lacks {len(missing)} of its weights: {names}")


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


@torch.no_grad()
def check_logits(model: PreTrainedModel, source: str) -> None:
    """Refuse a model whose logits are not just its output layer applied to the decoder's last hidden states.

    The model is on its device, without active dropout; messages call it `source`.

    Raises:
        UserError: its logits are transformed (soft-capped or scaled, say), or it takes no position ids.
    """
    positions = torch.arange(min(16, context_length(model.config)), device=model.device)[None]
    ids = positions % model.config.vocab_size
    try:
        expected = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        hidden = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    except TypeError as error:
        raise UserError(f"A {model.config.model_type} model ({source}) does not accept position ids.") from error
    if not torch.allclose(expected, model.get_output_embeddings()(hidden), rtol=1e-3, atol=1e-4):
        raise UserError(
            f"A {model.config.model_type} model ({source}) transforms its logits after the output layer: "
            f"this is not supported, its log-probabilities would be wrong."
        )
