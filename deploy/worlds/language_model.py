"""Small causal language models: the policy of a world (Llama), and the body of its reward model (GPT-J)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from brain_align.deploy.worlds.packing import Group, batches_by_length, pack
from brain_align.deploy.worlds.training import Plan, Progress, optimise


@dataclass(frozen=True)
class ModelSize:
    """Size of a small transformer; `context` is the longest sequence, in tokens."""

    layers: int
    width: int
    heads: int
    context: int


def new_llama(size: ModelSize, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of the given size with random weights, in float32."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.width,
            intermediate_size=8 * size.width // 3 // 32 * 32,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=size.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            initializer_range=size.width**-0.5 / 2,
            dtype="float32",
        )
    )


def new_gptj(size: ModelSize, tokenizer: PreTrainedTokenizerFast) -> GPTJForCausalLM:
    """A GPT-J of the given size with random weights, in float32, without dropout."""
    return GPTJForCausalLM(
        GPTJConfig(
            vocab_size=len(tokenizer),
            n_embd=size.width,
            n_layer=size.layers,
            n_head=size.heads,
            rotary_dim=size.width // size.heads // 2,
            n_positions=size.context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh",  # gelu_new, computed in one operation
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
            initializer_range=size.width**-0.5 / 2,
            dtype="float32",
        )
    )


@dataclass(frozen=True)
class Example:
    """Texts with a common prompt, and the first token of each that the loss counts (1: all that can be predicted)."""

    group: Group
    loss_from: int


def train_language_model(
    model: PreTrainedModel,
    examples: Sequence[Example],
    plan: Plan,
    batch_tokens: int,
    random: Random,
    label: str,
    progress: Progress,
) -> float:
    """Train on next-token prediction, epoch after epoch until the plan's steps are done; returns the last mean loss."""

    def losses() -> Iterator[torch.Tensor]:
        while True:
            for batch in batches_by_length([len(e.group) for e in examples], batch_tokens, random):
                total, count = token_loss(model, [examples[index] for index in batch])
                yield total / count

    return optimise(model, losses(), plan, label, progress)


def token_loss(model: PreTrainedModel, examples: Sequence[Example]) -> tuple[torch.Tensor, int]:
    """Sum of −log p over the tokens that the loss counts, and their number.

    A prompt's own tokens are counted once, and logits are computed for counted tokens only.
    """
    packed = pack([example.group for example in examples], model.config.eos_token_id)
    row, place, target = torch.tensor(
        [(b, *counted) for b, example in enumerate(examples) for counted in _counted_tokens(example)]
    ).unbind(1)
    hidden = model.base_model(
        packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=packed.attention_mask,
        use_cache=False,
    ).last_hidden_state  # [b, s, h]
    logits = model.get_output_embeddings()(hidden[row, place])  # [counted, v]
    return cross_entropy(logits, target, reduction="sum"), len(target)


def _counted_tokens(example: Example) -> Iterator[tuple[int, int]]:
    """For each counted token: where its predecessor stands in the packed row, and the token."""
    group = example.group
    for index in range(example.loss_from, group.shared):
        yield index - 1, group.rows[0][index]
    for number, row in enumerate(group.rows):
        for index in range(max(example.loss_from, group.shared), len(row)):
            yield group.place(number, index - 1), row[index]


@torch.inference_mode()
def held_out_loss(model: PreTrainedModel, examples: Sequence[Example], batch_tokens: int) -> float:
    """Mean −log p a counted token, in nats."""
    total, count = 0.0, 0
    for batch in batches_by_length([len(e.group) for e in examples], batch_tokens, Random(0)):
        loss, tokens = token_loss(model, [examples[index] for index in batch])
        total, count = total + loss.item(), count + tokens
    return total / count
