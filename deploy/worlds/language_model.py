"""Tokenizer and small causal language models of a toy task: policy (Llama) and body of the reward model (GPT-J)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from brain_align.deploy.worlds.packing import Group, batches_by_length, hidden_states

EOS = "<|endoftext|>"


@dataclass(frozen=True)
class ModelSize:
    """The size of a small transformer; `context` is the length of the longest sequence, in tokens."""

    layers: int
    width: int
    heads: int
    context: int


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer like GPT-2's; `<|endoftext|>` is its only special token, and the padding.

    The vocabulary consists of the 256 bytes, EOS, and merges: `vocab_size` in all, or fewer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, bos_token=EOS)


def new_llama(size: ModelSize, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a Llama with random weights, in float32."""
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
    """Return a GPT-J with random weights, in float32, without dropout."""
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
    """Texts with a common prompt, and the first token of each that the loss counts (1: all but the very first)."""

    group: Group
    loss_from: int


def mean_token_loss(model: PreTrainedModel, examples: Sequence[Example]) -> torch.Tensor:
    """Return the mean −log p per token that the loss counts, in nats: the loss of a batch."""
    total, count = token_loss(model, examples)
    return total / count


def token_loss(model: PreTrainedModel, examples: Sequence[Example]) -> tuple[torch.Tensor, int]:
    """Return the sum of −log p (nats) over the tokens that the loss counts, and their number.

    A prompt's own tokens are counted once, and logits are computed for counted tokens only.
    """
    row, place, target = torch.tensor(
        [(b, *counted) for b, example in enumerate(examples) for counted in _counted_tokens(example)]
    ).unbind(1)
    hidden = hidden_states(model.base_model, [example.group for example in examples], model.config.eos_token_id)
    logits = model.get_output_embeddings()(hidden[row, place])  # [counted, v]
    return cross_entropy(logits, target, reduction="sum"), len(target)


def _counted_tokens(example: Example) -> Iterator[tuple[int, int]]:
    """Yield, for each counted token, its predecessor's place in the packed row, and the token."""
    group = example.group
    for index in range(example.loss_from, group.shared):
        yield index - 1, group.rows[0][index]
    for number, row in enumerate(group.rows):
        for index in range(max(example.loss_from, group.shared), len(row)):
            yield group.place(number, index - 1), row[index]


@torch.inference_mode()
def held_out_loss(model: PreTrainedModel, examples: Sequence[Example], batch_tokens: int) -> float:
    """Return the mean −log p per counted token of held-out examples, in nats."""
    total, count = 0.0, 0
    for batch in batches_by_length([len(e.group) for e in examples], batch_tokens, Random(0)):
        loss, tokens = token_loss(model, [examples[index] for index in batch])
        total, count = total + loss.item(), count + tokens
    return total / count


def policy_facts(
    model: PreTrainedModel, train_loss: float, held_out: Sequence[Example], batch_tokens: int
) -> dict[str, object]:
    """Return what world.json says of a policy: size, and losses in nats per token."""
    return {
        "parameters": model.num_parameters(),
        "train_loss": round(train_loss, 3),
        "held_out_loss": round(held_out_loss(model, held_out, batch_tokens), 3),
    }
