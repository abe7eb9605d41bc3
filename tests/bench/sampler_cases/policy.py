"""The policy that is sampled from: a random Llama of 4 layers × 256, float32, with published adapters of rank 8."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.config.recipe import Recipe
from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.common.nn.models.adapters import attach_new_adapter, save_adapter
from brain_align.common.nn.models.causal_lm import load_causal_lm
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

    def recipe(self) -> Recipe:
        return Recipe.model_validate(
            recipe_settings(
                policy={"model": str(self.model), "dtype": "float32"},
                data={"train": "a", "validation": "b", "test": "c", "max_prompt_tokens": PROMPT_TOKENS},
                sampling={"n": N, "max_tokens": OUTPUT_TOKENS},
                algorithm={"max_staleness": 1},
            )
        )

    def publish(self, version: int) -> ProposalVersion:
        """Publish a new adapter, as the learner does; returns once samplers may load it."""
        base = load_causal_lm(str(self.model), "float32")
        adapted = attach_new_adapter(base, AdapterSection(r=RANK, alpha=16), seed=version)
        probe = make_probe(SequenceLogprobs(adapted), base.config)
        return self.registry.publish(version, version, partial(save_adapter, adapted), probe)


def prompts(count: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY - 1, (count, PROMPT_TOKENS), generator=generator).tolist()


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
