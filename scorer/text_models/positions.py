"""The longest text that a classifier reads."""

from torch import nn
from transformers import PreTrainedModel

_NOT_OF_TEXTS = ("vision", "entity")


def longest_text(model: PreTrainedModel) -> int | None:
    """Return the most tokens that a model has positions for; None where positions are relative, and there is no limit.

    The model may be on the meta device: its weights are not read.
    """
    config = model.config.get_text_config()
    stated = getattr(config, "max_position_embeddings", None)
    limits = [_rows(table) for name, table in model.named_modules() if _is_of_positions(name, table)]
    if isinstance(stated, int) and stated > 0:
        limits.append(stated)
    relative = getattr(config, "relative_attention", False) or getattr(config, "alibi", False)
    return None if not limits or (relative and limits == [stated]) else min(limits)


def _is_of_positions(name: str, module: nn.Module) -> bool:
    last = name.rpartition(".")[2]
    return (
        isinstance(module, nn.Embedding)
        and ("pos" in last or last == "wpe")
        and not any(word in name for word in _NOT_OF_TEXTS)
    )


def _rows(table: nn.Module) -> int:
    """Return how many positions a table has; RoBERTa's and BART's begin behind the padding's."""
    assert isinstance(table, nn.Embedding), "others have no positions"
    offset = getattr(table, "offset", 0 if table.padding_idx is None else table.padding_idx + 1)
    return table.num_embeddings - int(offset)
