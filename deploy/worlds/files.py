"""Writes prepared data and models in the formats of published ones."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from brain_align.common.durable import write_file
from brain_align.deploy.worlds.reward_model import RewardModel
from brain_align.scorer.text_models.formats import RewardFormat


def save_prompts(world: Path, split: str, rows: Iterable[Mapping[str, Any]], *, folder: str = "prompts") -> None:
    """Write `prompts/SPLIT.jsonl`, rows with at least `prompt` and `label` (the reference output)."""
    path = world / folder / f"{split}.jsonl"
    write_file(path, "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows))


def save_policy(world: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write `policy/`, a model directory of transformers.

    The parts are written one by one, because a model's `save_pretrained` imports DeepSpeed if it is installed.
    """
    directory = world / "policy"
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    # without lm_head, which is tied to the embedding
    (directory / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    tokenizer.save_pretrained(directory)


def save_reward_model(world: Path, model: RewardModel, form: RewardFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write `reward/` in the format of the published reward models, with the configuration and tokenizer they lack.

    As in those, the file holds `transformer.*`, `v_head.weight`, and the causal masks that old versions of
    transformers stored with the weights.
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
    """Write `world.json`: sources, sizes and quality of the prepared data and models."""
    write_file(world / "world.json", json.dumps(facts, indent=2) + "\n")
