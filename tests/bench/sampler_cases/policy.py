"""The policies that are sampled from, with adapters of rank 8: a random Llama of 4 layers × 256 in float32, or a given
model in bfloat16."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.config.recipe import Recipe
from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.common.nn.models.adapters import attach_new_adapter, save_adapter
from brain_align.common.nn.models.causal_lm import Dtype, load_causal_lm, load_tokenizer
from brain_align.common.nn.models.configuration import load_config
from brain_align.common.nn.models.end_tokens import end_tokens
from brain_align.common.policies import PolicyRegistry, ProposalVersion
from brain_align.learner.publishing.publisher import make_probe
from tests.unit.factories import recipe_settings
from tests.unit.tiny_models import gpt2_like_tokenizer, save

VOCABULARY = 2048  # random outputs hardly ever hit EOS, so that they have the same lengths everywhere
RANK = 8
PROMPT_TOKENS, OUTPUT_TOKENS, N = 32, 48, 8
LEASE_PROMPTS, LEASES = 16, 4


@dataclass(frozen=True)
class BenchedPolicy:
    """A model on disk, and the registry that its adapters are published in."""

    model: Path
    registry: PolicyRegistry
    dtype: Dtype = "float32"
    vocabulary: int = VOCABULARY
    ends: Sequence[int] = (VOCABULARY - 1,)  # tokens that end an output
    output_tokens: int = OUTPUT_TOKENS

    def recipe(self) -> Recipe:
        return Recipe.model_validate(
            recipe_settings(
                policy={"model": str(self.model), "dtype": self.dtype},
                data={"train": "a", "validation": "b", "test": "c", "max_prompt_tokens": PROMPT_TOKENS},
                sampling={"n": N, "max_tokens": self.output_tokens},
                algorithm={"max_staleness": 1},
            )
        )

    def publish(self, version: int) -> ProposalVersion:
        """Publish a new adapter, as the learner does; returns once samplers may load it."""
        base = load_causal_lm(str(self.model), self.dtype)
        adapted = attach_new_adapter(base, AdapterSection(r=RANK, alpha=16), seed=version)
        for name, weight in adapted.named_parameters():
            if ".lora_B." in name:  # as after some training: a few per cent of the weights
                torch.nn.init.normal_(weight, std=0.003)
        probe = make_probe(SequenceLogprobs(adapted), base.config)
        return self.registry.publish(version, version, partial(save_adapter, adapted), probe)


def prompts(count: int, seed: int, vocabulary: int = VOCABULARY) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary - 1, (count, PROMPT_TOKENS), generator=generator).tolist()


def make_policy(directory: Path) -> BenchedPolicy:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=512, bos_token_id=VOCABULARY - 1, eos_token_id=VOCABULARY - 1,
    )  # fmt: skip
    model = directory / "model"
    save(LlamaForCausalLM(config).eval(), model)
    gpt2_like_tokenizer().save_pretrained(model)
    return BenchedPolicy(model, PolicyRegistry(directory / "policies"))


def given_policy(model: Path, directory: Path) -> BenchedPolicy:
    """A model with its tokenizer, in bfloat16."""
    tokenizer = load_tokenizer(str(model))
    vocabulary = load_config(str(model)).vocab_size
    ends = end_tokens(str(model), tokenizer)
    return BenchedPolicy(model, PolicyRegistry(directory / "policies"), "bfloat16", vocabulary, ends, 64)
