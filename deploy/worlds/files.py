"""Writes the parts of a world in the formats of the real ones."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from brain_align.deploy.worlds.reward_model import RewardModel
from brain_align.scorer.text_models.formats import RewardFormat


def save_prompts(world: Path, split: str, rows: Iterable[Mapping[str, str]]) -> None:
    """Write `prompts/SPLIT.jsonl`: at least `prompt` and `label` (the gold output) a row."""
    path = world / "prompts" / f"{split}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def save_policy(world: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write `policy/`: an HF directory.

    The parts are written one by one, because `save_pretrained` of a model loads DeepSpeed where it is installed.
    """
    directory = world / "policy"
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    # lm_head is left out: it is tied to the embedding.
    (directory / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    tokenizer.save_pretrained(directory)


def save_reward_model(world: Path, model: RewardModel, form: RewardFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write `reward/` as the published reward models are written, and the configuration and tokenizer that they lack.

    Like those, the file holds `transformer.*`, `v_head.weight`, and the causal masks that old versions of transformers
    kept among the weights.
    """
    directory = world / "reward"
    config = model.transformer.config
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    mask = torch.ones(config.n_positions, config.n_positions, dtype=torch.bool).tril()[None, None]
    for layer in range(config.n_layer):
        weights[f"transformer.h.{layer}.attn.bias"] = mask
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    directory.mkdir()
    torch.save(weights, directory / form.checkpoint_file)
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def save_facts(world: Path, facts: Mapping[str, object]) -> None:
    """Write `world.json`: what was made of what, and how well it came out."""
    (world / "world.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
