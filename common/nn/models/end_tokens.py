"""The tokens that end a text of a model: one in most tokenizers, several in most chat models."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from brain_align.common.errors import UserError, refuse_unreadable
from brain_align.common.nn.models.configuration import load_any_config
from brain_align.common.nn.models.sources import find_source, hub_failure

_GENERATION = "generation_config.json"


def end_tokens(source: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return all ids that end an output of a model, the tokenizer's own first.

    They are what config.json, generation_config.json and the tokenizer call `eos_token_id`, as vLLM takes them.
    """
    return list(dict.fromkeys([*_listed(tokenizer.eos_token_id), *model_end_tokens(source)]))


def model_end_tokens(source: str) -> list[int]:
    """Return the ids that config.json and generation_config.json name."""
    config = load_any_config(source)
    inner = config.get_text_config()
    named = (
        getattr(config, "eos_token_id", None),
        getattr(inner, "eos_token_id", None),
        _generation(source).get("eos_token_id"),
    )
    return list(dict.fromkeys(token for ids in named for token in _listed(ids)))


def generation_file(source: str) -> Path | None:
    """Return a model's generation_config.json, fetched from the hub where the model is there; None if it has none.

    Raises:
        OSError: it cannot be fetched or read.
    """
    place = find_source(source, "The model")
    path = cached_file(
        place.name,
        _GENERATION,
        revision=place.revision,
        local_files_only=place.local or hub_failure() is not None,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def _listed(ids: Any) -> list[int]:
    listed = ids if isinstance(ids, list | tuple) else [ids]
    return [token for token in listed if isinstance(token, int) and token >= 0]  # -1: none, in some configurations


def _generation(source: str) -> dict[str, Any]:
    """Return generation_config.json as it is: transformers' class refuses files that many models have."""
    try:
        path = generation_file(source)
        if path is None:
            return {}
        with open(path, encoding="utf-8-sig") as file:
            settings = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        refuse_unreadable(Path(source) / _GENERATION, error)
        raise UserError(f"{_GENERATION} of {source} cannot be read ({error}); restore or remove it.") from None
    return settings if isinstance(settings, dict) else {}
