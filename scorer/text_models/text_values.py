"""The value of a text under a causal model with a scalar head: read at the text's last token."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from brain_align.common.nn.prefix.decoder import PrefixDecoder
from brain_align.common.nn.prefix.packing import Request
from brain_align.scorer.text_models.prefixes import SharedPrefix, shared_prefixes


class TextValues:
    """Values of texts; what texts have in common is computed once.

    Attributes:
        decoder: the model without its head.
    """

    def __init__(self, model: PreTrainedModel, head: nn.Linear, max_tokens: int) -> None:
        """Try the model on packed rows, and compute on padded ones if they give something else.

        Args:
            model: a causal decoder.
            head: from a hidden state to one value.
            max_tokens: of one forward pass, padding included.
        """
        self.decoder = PrefixDecoder(model)
        self._head = head
        self._max_tokens = max_tokens
        self.decoder.pad_unless_exact()

    def of(self, texts: Sequence[list[int]]) -> list[float]:
        """The value of each text, which depends on these texts alone; in other company it may be rounded otherwise.

        Args:
            texts: token ids, at least one each, and at most the model's context.
        """
        if not texts:
            return []
        parts = shared_prefixes(texts)
        states = self.decoder.last_states([_request(texts, part) for part in parts], self._max_tokens)
        # In float32: bfloat16 would round rewards to steps of 0.016.
        bias = None if self._head.bias is None else self._head.bias.float()
        values = linear(states.float(), self._head.weight.float(), bias).squeeze(-1).tolist()
        order = [index for part in parts for index in part.texts]
        return [value for _, value in sorted(zip(order, values, strict=True))]


def _request(texts: Sequence[list[int]], part: SharedPrefix) -> Request:
    prompt = torch.tensor(texts[part.texts[0]][: part.length], dtype=torch.int64)
    return prompt, [torch.tensor(texts[index][part.length :], dtype=torch.int64) for index in part.texts]
