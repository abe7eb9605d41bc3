"""A small Bradley–Terry reward model with GPT-J's architecture, as the published ones have."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import torch
from torch.nn.functional import logsigmoid
from transformers import GPTJModel, PreTrainedTokenizerBase

from deploy.worlds.batching import batches_by_length
from deploy.worlds.training import Plan, Progress, optimise


class TextFormat(Protocol):
    """How a reward model reads a text: scorer/formats.py."""

    def text(self, prompt: str, output: str) -> str: ...
    def encode(self, tokenizer: PreTrainedTokenizerBase, texts: list[str]): ...


@dataclass(frozen=True)
class Preferences:
    """Outputs for one prompt, and who won against whom: pairs of indices (winner, loser)."""

    prompt: str
    outputs: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]


class RewardModel(torch.nn.Module):
    """GPT-J with a scalar head without bias, `v_head`."""

    def __init__(self, transformer: GPTJModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.v_head = torch.nn.Linear(transformer.config.n_embd, 1, bias=False)
        torch.nn.init.normal_(self.v_head.weight, std=1 / math.sqrt(transformer.config.n_embd))

    def forward(self, input_ids: torch.Tensor, read_index: torch.Tensor) -> torch.Tensor:
        """Rewards [b] of right-padded rows [b, s], read at one position a row."""
        hidden = self.transformer(input_ids, use_cache=False).last_hidden_state  # [b, s, h]
        return self.v_head(hidden[torch.arange(len(hidden)), read_index]).squeeze(-1)
