"""A small policy with published versions, and the leases that samplers are given of it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.config.recipe import Recipe
from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
from brain_align.common.nn.models.adapters import attach_new_adapter, save_adapter
from brain_align.common.nn.models.causal_lm import load_causal_lm
from brain_align.common.policies import PolicyRegistry, ProposalModel, ProposalVersion
from brain_align.common.requests import Prompt, SampleRequest
from brain_align.learner.publishing.publisher import make_probe
from brain_align.sampler.sampler import Sampler
from tests.unit.factories import recipe_settings
from tests.unit.tiny_models import gpt2_like_tokenizer, llama, save

TOKENIZER = gpt2_like_tokenizer()
VOCABULARY = len(TOKENIZER)
EOS_ID = VOCABULARY - 1
RANK = 8
TARGETS = ["q_proj", "v_proj", "down_proj"]


@dataclass(frozen=True)
class Policies:
    """A model with its tokenizer, and the registry of its versions."""

    model: Path
    registry: PolicyRegistry

    def recipe(self, **changes: Any) -> Recipe:
        settings = recipe_settings(
            policy={"model": str(self.model), "dtype": "float32"},
            data={"train": "a", "validation": "b", "test": "c", "max_prompt_tokens": 32},
            sampling={"n": 4, "max_tokens": 16},
        )
        return Recipe.model_validate({**settings, **changes})

    def sampler(self, *, full: bool = False, merged: bool = False, **changes: Any) -> Sampler:
        rank = None if full else RANK
        return Sampler("sampler-0", self.recipe(**changes), ProposalModel(str(self.model), rank, merged))

    def adapted(self, seed: int, rank: int = RANK, *, rslora: bool = False) -> PeftModel:
        """The model with a random adapter that changes its outputs a lot."""
        base = load_causal_lm(str(self.model), "float32")
        adapted = attach_new_adapter(base, AdapterSection(r=rank, alpha=16, targets=TARGETS), seed)
        if rslora:
            adapted.active_peft_config.use_rslora = True
            for module in adapted.modules():
                if isinstance(module, LoraLayer):
                    module.scaling["default"] = 16 / rank**0.5
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in sorted(adapted.named_parameters()):
                if ".lora_B." in name:
                    value.normal_(0, 0.3, generator=generator)
        return adapted

    def publish(self, version: int, model: PeftModel, probed: PeftModel | None = None) -> ProposalVersion:
        """Publish an adapter; with the probe of another model, if one is given."""
        return self.registry.publish(version, version, partial(save_adapter, model), probe_of(probed or model))

    def publish_whole(self, version: int, model: PreTrainedModel, server: str | None = None) -> ProposalVersion:
        return self.registry.publish(version, version, partial(save, model), probe_of(model), server)

    def lease(
        self, version: int, *, alone: bool, seed: int = 1, prompts: list[list[int]] | None = None
    ) -> SampleRequest:
        texts = prompts or [[3 + 7 * place + step for step in range(4 + place)] for place in range(6)]
        drawn = tuple(Prompt(f"p{place}", "text", tuple(ids), None) for place, ids in enumerate(texts))
        ids = tuple(f"v{version}-s{seed}-{prompt.prompt_id}" for prompt in drawn)
        return SampleRequest("lease", "train", version, version, 4, seed, ids, drawn, str(self.registry.root), alone)


def probe_of(model: PeftModel | PreTrainedModel) -> Any:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return make_probe(SequenceLogprobs(model), base.config)


def base_model(seed: int = 1, head: int = 32) -> PreTrainedModel:
    """32 is the smallest head that vLLM's attention has on CPUs."""
    return llama(seed=seed, vocabulary=VOCABULARY, head_dim=head)


def make_policies(directory: Path) -> Policies:
    model = directory / "model"
    save(base_model(), model)
    TOKENIZER.save_pretrained(model)
    return Policies(model, PolicyRegistry(directory / "policies"))


async def sampled(sampler: Sampler, lease: SampleRequest) -> list[dict[str, Any]]:
    """The rows of a lease, in the order of its prompts."""
    rows = pa.Table.from_batches([group async for group in sampler.generate(lease)]).to_pylist()
    return sorted(rows, key=lambda row: lease.group_ids.index(row["group_id"]))


def outputs(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [row["outputs"] for row in rows]


def worst_gap(rows: list[dict[str, Any]], model: PeftModel | PreTrainedModel) -> float:
    """The largest difference between a sampled token's stored log-probability and what a model gives it, in nats."""
    policy = SequenceLogprobs(model)
    gaps = []
    for row in rows:
        with torch.no_grad():
            exact = policy.token_logprobs(
                [request_of(row["prompt_token_ids"], [output["token_ids"] for output in row["outputs"]])]
            )
        for output, ours in zip(row["outputs"], exact, strict=True):
            gaps.append((ours - torch.tensor(output["token_logprobs"])).abs().max().item())
    return max(gaps)
