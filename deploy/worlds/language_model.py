"""Small causal language models: the policy of a world (Llama), and the body of its reward model (GPT-J)."""

from collections.abc import Iterator, Sequence
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

from deploy.worlds.batching import Example, batches_by_length, pad
from deploy.worlds.settings import ModelSize
from deploy.worlds.training import Plan, Progress, optimise


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
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
            initializer_range=size.width**-0.5 / 2,
            dtype="float32",
        )
    )


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
            for batch in batches_by_length([len(e.token_ids) for e in examples], batch_tokens, random):
                total, count = token_loss(model, [examples[index] for index in batch])
                yield total / count

    return optimise(model, losses(), plan, label, progress)


def token_loss(model: PreTrainedModel, examples: Sequence[Example]) -> tuple[torch.Tensor, int]:
    """Sum of −log p over the tokens that the loss counts, and their number.

    Padding stands on the right, so that causal attention needs no mask; logits are computed for counted tokens only.
    """
    tokens = pad([example.token_ids for example in examples], model.config.eos_token_id)  # [b, s]
    position = torch.arange(1, tokens.shape[1])
    first = torch.tensor([example.loss_from for example in examples])[:, None]
    length = torch.tensor([len(example.token_ids) for example in examples])[:, None]
    counted = (position >= first) & (position < length)  # [b, s-1]
    hidden = model.base_model(tokens[:, :-1], use_cache=False).last_hidden_state  # [b, s-1, h]
    logits = model.get_output_embeddings()(hidden[counted])  # [counted, v]
    return cross_entropy(logits, tokens[:, 1:][counted], reduction="sum"), int(counted.sum())


@torch.inference_mode()
def held_out_loss(model: PreTrainedModel, examples: Sequence[Example], batch_tokens: int) -> float:
    """Mean −log p a counted token, in nats."""
    total, count = 0.0, 0
    for batch in batches_by_length([len(e.token_ids) for e in examples], batch_tokens, Random(0)):
        loss, tokens = token_loss(model, [examples[index] for index in batch])
        total, count = total + loss.item(), count + tokens
    return total / count
