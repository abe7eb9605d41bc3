"""The SFT policy: the base, fine-tuned on reference outputs by TRL's SFTTrainer, as one merged model."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from brain_align.common.config.run import PrepareSection
from brain_align.common.durable import new_directory
from brain_align.common.nn.logprobs import sequence_logprobs
from brain_align.common.nn.models.causal_lm import load_causal_lm
from brain_align.common.nn.models.end_tokens import generation_file
from brain_align.common.nn.models.saving import check_saveable, save_causal_lm
from brain_align.deploy.worlds.pretrained.base import Base
from brain_align.deploy.worlds.pretrained.pairs import Pair
from brain_align.deploy.worlds.pretrained.training import (
    Stage,
    adapter_config,
    common_arguments,
    device_of,
    merged,
    on_one_device,
    train,
    trained_dtype,
)

_MEASURED = 128  # held-out references
_PASS_TOKENS = 4096

Example = tuple[list[int], list[int]]
"""The token ids of a prompt and of its reference output, with its end."""


def make_policy(
    base: Base, settings: PrepareSection, prompts: Sequence[Pair], directory: Path, stage: Stage
) -> dict[str, Any]:
    """Fine-tune the base on the chosen outputs of prompts, and write the model to `directory`; return facts."""
    from trl import SFTConfig, SFTTrainer  # an optional dependency

    chosen = Random(settings.seed).sample(list(prompts), len(prompts))[: settings.sft.examples]
    examples = [_example(base, pair) for pair in chosen]
    model = load_causal_lm(base.source, trained_dtype(settings))
    check_saveable(model)
    longest = max(len(prompt) + len(output) for prompt, output in examples)
    arguments = common_arguments(settings, settings.sft, stage, len(examples), longest)
    trainer = SFTTrainer(
        model=model,
        args=on_one_device(SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True})),
        train_dataset=_dataset(examples),
        processing_class=base.tokenizer,
        peft_config=adapter_config(settings, model, task_type="CAUSAL_LM"),
    )
    facts = {"examples": len(examples), "parameters": model.num_parameters(), **train(trainer, stage)}
    whole = merged(trainer.model, settings.dtype)
    whole.name_or_path = base.source
    with new_directory(directory) as target:
        save_causal_lm(whole, target)
        save_beside(base, target)
    return facts


def held_out_loss(source: str, base: Base, settings: PrepareSection, pairs: Sequence[Pair]) -> float:
    """Return a model's mean −log p per token of the chosen outputs, their ends included, in nats."""
    model = load_causal_lm(source, settings.dtype, device_of(settings))
    groups = [_example(base, pair) for pair in pairs[:_MEASURED]]
    found = sequence_logprobs(
        model.requires_grad_(False), [(prompt, [output]) for prompt, output in groups], max_tokens=_PASS_TOKENS
    )
    sums = sum(float(group.sums.sum()) for group in found)
    return round(-sums / sum(len(output) for _, output in groups), 4)


def save_beside(base: Base, directory: Path) -> None:
    """Write what belongs to a model besides its weights: tokenizer with chat template, and generation settings."""
    base.tokenizer.save_pretrained(directory)
    generation = generation_file(base.source)  # its end tokens are often more than the tokenizer's one
    if generation is not None:
        shutil.copyfile(generation, directory / generation.name)


def _example(base: Base, pair: Pair) -> Example:
    [prompt] = base.encoding.prompts([pair.prompt])
    return prompt, base.encoding.completion(pair.chosen)


def _dataset(examples: Sequence[Example]) -> Any:
    from datasets import Dataset  # takes seconds to import

    return Dataset.from_dict(
        {
            "input_ids": [prompt + output for prompt, output in examples],
            "labels": [[-100] * len(prompt) + output for prompt, output in examples],
            "length": [len(prompt) + len(output) for prompt, output in examples],
        }
    )
