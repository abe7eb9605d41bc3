"""Models' configurations: of the text model, where a model also reads images or sound."""

import re
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import PrefixChange

from brain_align.common.errors import UserError
from brain_align.common.nn.models.sources import find_source
from brain_align.common.policies import ADAPTER_CONFIG

_TEXT_MODEL_S_NAMES = {
    r"^(model\.)?(language|text)_model\.lm_head\.": "lm_head.",
    r"^(model\.)?(language|text)_model\.(model\.)?": "model.",
}
"""From names of weights in the files of a model of several parts to those of its text model alone."""

_LENGTHS = ("max_position_embeddings", "max_seq_len", "seq_length", "max_target_positions", "max_sequence_length")
"""Names of the context length, in vLLM's order; a configuration's own name for the first is mapped to it."""


def load_config(source: str) -> PreTrainedConfig:
    """Load the configuration of a causal language model, from an HF directory without network access, or by hub id.

    Of a model with several parts (text and vision, say) it is that of the text model.

    Raises:
        UserError: the directory is missing, the configuration could not be loaded, or it is of no such model.
    """
    config = load_any_config(source)
    text = text_config(config)
    if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return text
    if text is config:
        raise UserError(f"{source} holds a {config.model_type} model, which is not a causal language model.")
    raise UserError(
        f"{source} holds a {config.model_type} model, which reads more than text, and transformers has no class for "
        f"its text model ({text.model_type}) alone; give a text-only model."
    )


def load_any_config(source: str) -> PreTrainedConfig:
    """Load the configuration of a whole model.

    Raises:
        UserError: the directory is missing, or the configuration could not be loaded.
    """
    what = "model configuration"
    place = find_source(source, f"The {what}")
    if place.local and (Path(source) / ADAPTER_CONFIG).is_file():
        _refuse_adapter(Path(source))
    try:
        return AutoConfig.from_pretrained(place.name, **place.arguments())
    except Exception as error:  # a user's file may bring anything about in transformers' code
        raise place.failure(what, error) from error


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the part of a configuration that belongs to the model that reads text, with what counts for all parts."""
    try:
        text = config.get_text_config()
    except ValueError:  # several are of text
        return config
    if text is not config:
        text._commit_hash = getattr(config, "_commit_hash", None)
        if hasattr(config, "quantization_config"):
            text.quantization_config = config.quantization_config
        if getattr(config, "tie_word_embeddings", False):  # where the output layer belongs to the whole model
            text.tie_word_embeddings = True  # a file that holds another output layer is believed, all the same
    return text


def names_in_parts(source: str, config: PreTrainedConfig) -> dict[str, str] | None:
    """Return patterns of the names of weights in a model's files with the text model's names for them.

    None for a text-only model, and where transformers itself knows the names.
    """
    if not has_other_parts(source, config):
        return None
    known = get_checkpoint_conversion_mapping(config.model_type) or ()
    return None if any(isinstance(change, PrefixChange) for change in known) else _TEXT_MODEL_S_NAMES


def has_other_parts(source: str, config: PreTrainedConfig) -> bool:
    """Return whether a source holds more than the text model whose configuration `load_config` gave."""
    return type(load_any_config(source)) is not type(config)


def context_length(config: PreTrainedConfig) -> int:
    """Return the largest number of tokens (prompt and output together) that a model can read.

    Raises:
        UserError: the configuration does not state it.
    """
    lengths = (getattr(config, name, None) for name in _LENGTHS)
    length = next((length for length in lengths if isinstance(length, int) and length > 0), None)
    if length is None:
        raise UserError(
            f"The configuration of this {config.model_type} model does not state how many tokens the model reads; add "
            f"max_position_embeddings to its config.json."
        )
    return length


def head_dimension(config: PreTrainedConfig) -> int | None:
    """Return the size of an attention head; None where the configuration does not tell."""
    settings: dict[str, Any] = config.to_dict()
    if head := settings.get("head_dim"):
        return int(head)
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    return hidden // heads if isinstance(heads, int) and isinstance(hidden, int) and heads else None


def base_of_adapter(directory: Path) -> str:
    """Return the base model that an adapter names, in brackets after a space; empty if it names none."""
    text = (directory / ADAPTER_CONFIG).read_text(encoding="utf-8", errors="replace")
    base = re.search(r'"base_model_name_or_path"\s*:\s*"([^"]+)"', text)
    return f" ({base[1]})" if base else ""


def _refuse_adapter(directory: Path) -> None:
    whole = (directory / "config.json").is_file()
    raise UserError(
        f"{directory} holds an adapter{' beside a whole model' if whole else ''} ({ADAPTER_CONFIG}); "
        + (f"remove {ADAPTER_CONFIG} and the adapter's weights if the model is meant, or " if whole else "")
        + f"set policy.model to the adapter's base model{base_of_adapter(directory)} and policy.sft_adapter to "
        f"{'this directory' if not whole else 'a directory that holds the adapter alone'}."
    )
