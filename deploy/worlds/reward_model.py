"""A small Bradley–Terry reward model with GPT-J's architecture, like the published ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch.nn.functional import logsigmoid
from transformers import GPTJModel, PreTrainedTokenizerFast

from brain_align.deploy.worlds.packing import Group, batches_by_length, group_of, hidden_states
from brain_align.scorer.text_models.formats import RewardFormat


@dataclass(frozen=True)
class Preferences:
    """Outputs for one prompt, with preferences as pairs of indices (winner, loser)."""

    prompt: str
    outputs: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class EncodedPreferences:
    """Preferences as token sequences; `places` are those of each output's reward in the packed row."""

    group: Group
    places: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]


class RewardModel(torch.nn.Module):
    """GPT-J with `v_head`, a scalar head without bias."""

    def __init__(self, transformer: GPTJModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.v_head = torch.nn.Linear(transformer.config.n_embd, 1, bias=False)
        torch.nn.init.normal_(self.v_head.weight, std=transformer.config.n_embd**-0.5)

    def forward(self, items: Sequence[EncodedPreferences]) -> list[torch.Tensor]:
        """Return the rewards of each item's outputs: one tensor [outputs] per item."""
        groups, padding = [item.group for item in items], self.transformer.config.eos_token_id
        hidden = hidden_states(self.transformer, groups, padding)
        values = self.v_head(hidden).squeeze(-1)  # [b, s]
        return [values[b, list(item.places)] for b, item in enumerate(items)]


def encode(
    preferences: Sequence[Preferences], form: RewardFormat, tokenizer: PreTrainedTokenizerFast, context: int
) -> list[EncodedPreferences]:
    """Encode texts with the scorer's code for the format, so that training and scoring read the same tokens."""
    found = []
    for item in preferences:
        encoded = form.encode(tokenizer, [form.text(item.prompt, output) for output in item.outputs], context)
        rows, reads = [text.token_ids for text in encoded], [text.read_index for text in encoded]
        group = group_of(rows, keep=max(len(row) - read for row, read in zip(rows, reads, strict=True)))
        places = tuple(group.place(number, read) for number, read in enumerate(reads))
        found.append(EncodedPreferences(group, places, item.pairs))
    return found


def pair_loss(model: RewardModel, items: Sequence[EncodedPreferences]) -> torch.Tensor:
    """Return the mean −log likelihood per pair under the Bradley–Terry model, in nats: the loss of a batch."""
    return -logsigmoid(_margins(model, items)).mean()


@torch.inference_mode()
def pair_accuracy(model: RewardModel, data: Sequence[EncodedPreferences], batch_tokens: int) -> float:
    """Return the share of pairs whose winner has the strictly higher reward."""
    right, pairs = 0, 0
    for batch in batches_by_length([len(item.group) for item in data], batch_tokens, Random(0)):
        margins = _margins(model, [data[index] for index in batch])
        right, pairs = right + int((margins > 0).sum()), pairs + len(margins)
    return right / pairs


def _margins(model: RewardModel, items: Sequence[EncodedPreferences]) -> torch.Tensor:
    """Return the winner's reward minus the loser's, for all pairs of all items.  # [pairs]."""
    rewards = model(items)
    margins = [
        values[[winner for winner, _ in item.pairs]] - values[[loser for _, loser in item.pairs]]
        for values, item in zip(rewards, items, strict=True)
    ]
    return torch.cat(margins)


def reward_facts(
    model: RewardModel, train_loss: float, held_out: Sequence[EncodedPreferences], batch_tokens: int
) -> dict[str, object]:
    """Return what world.json says of a reward model: size, loss in nats per pair, and accuracy."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_loss": round(train_loss, 3),
        "held_out_pair_accuracy": round(pair_accuracy(model, held_out, batch_tokens), 3),
        "held_out_pairs": sum(len(item.pairs) for item in held_out),
    }
