"""Tiny random models and a tiny tokenizer in the formats of the real ones; made in milliseconds."""

from pathlib import Path

import torch
from safetensors.torch import save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

# Tiny matrices are no work for two threads: these only wait for each other, seconds long on a busy machine.
torch.set_num_threads(1)

VOCABULARY = 96
EOS_ID = VOCABULARY - 1
CONTEXT = 64


def llama(seed: int = 0, vocabulary: int = VOCABULARY, **settings) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=vocabulary - 1,
        eos_token_id=vocabulary - 1,
        initializer_range=0.3,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


def gptj_config(vocabulary: int = VOCABULARY, **settings) -> GPTJConfig:
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": CONTEXT}
    return GPTJConfig(
        vocab_size=vocabulary,
        bos_token_id=vocabulary - 1,
        eos_token_id=vocabulary - 1,
        initializer_range=0.3,
        **(shape | settings),
    )


def gptj(seed: int = 0, **settings) -> PreTrainedModel:
    torch.manual_seed(seed)
    return GPTJForCausalLM(gptj_config(**settings)).eval()


def save(model: PreTrainedModel, directory: Path) -> None:
    """What `save_pretrained` writes; that one imports deepspeed."""
    directory.mkdir(exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    save_model(model, str(directory / "model.safetensors"), metadata={"format": "pt"})


def gpt2_like_tokenizer(vocabulary: int = 300, eos: str = "<|endoftext|>") -> PreTrainedTokenizerFast:
    """Byte-level BPE with one special token, the last: GPT-2's tokenizer in small."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat", "TL;DR: the text of the start"] * 20, trainer)
    tokenizer.add_special_tokens([eos])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)
