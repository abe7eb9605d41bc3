"""A small Bradley–Terry reward model with GPT-J's architecture, as the published ones have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch.nn.functional import logsigmoid
from transformers import GPTJModel, PreTrainedTokenizerFast

from brain_align.deploy.worlds.packing import Group, batches_by_length, group_of, pack
from brain_align.deploy.worlds.training import Plan, Progress, optimise
from brain_align.scorer.text_models.formats import RewardFormat


@dataclass(frozen=True)
class Preferences:
    """Outputs for one prompt, and which won against which: pairs of indices (winner, loser)."""

    prompt: str
    outputs: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class EncodedPreferences:
    """Preferences as a reward model reads them.

    Attributes:
        group: the encoded texts.
        places: for each output, the token of the packed row whose value is its reward.
        pairs: (winner, loser).
    """

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
        """The rewards of each item's outputs: one tensor [outputs] an item."""
        packed = pack([item.group for item in items], self.transformer.config.eos_token_id)
        hidden = self.transformer(
            packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=packed.attention_mask,
            use_cache=False,
        ).last_hidden_state  # [b, s, h]
        values = self.v_head(hidden).squeeze(-1)  # [b, s]
        return [values[b, list(item.places)] for b, item in enumerate(items)]


def encode(
    preferences: Sequence[Preferences], form: RewardFormat, tokenizer: PreTrainedTokenizerFast, context: int
) -> list[EncodedPreferences]:
    """Encode texts with the format's own code, so that training and scoring read the same tokens."""
    return [_encode_one(item, form, tokenizer, context) for item in preferences]


def _encode_one(
    item: Preferences, form: RewardFormat, tokenizer: PreTrainedTokenizerFast, context: int
) -> EncodedPreferences:
    encoded = form.encode(tokenizer, [form.text(item.prompt, output) for output in item.outputs], context)
    rows, reads = [text.token_ids for text in encoded], [text.read_index for text in encoded]
    group = group_of(rows, keep=max(len(row) - read for row, read in zip(rows, reads, strict=True)))
    places = tuple(group.place(number, read) for number, read in enumerate(reads))
    return EncodedPreferences(group, places, item.pairs)


def train_reward_model(
    model: RewardModel,
    data: Sequence[EncodedPreferences],
    plan: Plan,
    batch_tokens: int,
    random: Random,
    label: str,
    progress: Progress,
) -> float:
    """Maximise the Bradley–Terry likelihood of the choices; returns the last mean loss a pair."""

    def losses() -> Iterator[torch.Tensor]:
        while True:
            for batch in batches_by_length([len(item.group) for item in data], batch_tokens, random):
                yield -logsigmoid(_margins(model, [data[index] for index in batch])).mean()

    return optimise(model, losses(), plan, label, progress)


@torch.inference_mode()
def pair_accuracy(model: RewardModel, data: Sequence[EncodedPreferences], batch_tokens: int) -> float:
    """Share of pairs whose winner has the strictly higher reward."""
    right, pairs = 0, 0
    for batch in batches_by_length([len(item.group) for item in data], batch_tokens, Random(0)):
        margins = _margins(model, [data[index] for index in batch])
        right, pairs = right + int((margins > 0).sum()), pairs + len(margins)
    return right / pairs


def _margins(model: RewardModel, items: Sequence[EncodedPreferences]) -> torch.Tensor:
    """Reward of the winner minus reward of the loser, for all pairs of all items: [pairs]."""
    rewards = model(items)
    margins = [
        values[[winner for winner, _ in item.pairs]] - values[[loser for _, loser in item.pairs]]
        for values, item in zip(rewards, items, strict=True)
    ]
    return torch.cat(margins)
