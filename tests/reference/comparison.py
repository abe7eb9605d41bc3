"""Scores as a run computes them, beside the plain reading of the specification."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPTJConfig, GPTJModel, PreTrainedTokenizerBase

from brain_align.common.config.scorers import GPTJRewardSection
from brain_align.common.data.text_groups import text_group
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.scorer.kinds.gptj import load_reward_model
from brain_align.scorer.scorer import Resources
from brain_align.scorer.text_models.formats import FORMATS
from tests.reference.reward_models import ReferenceReward
from tests.reference.texts import Group


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        texts: how many were compared.
        truncated: how many of them were too long.
        spread: of the expected scores, their standard deviation.
        largest_difference: between a score and the expected one.
    """

    texts: int
    truncated: int
    spread: float
    largest_difference: float


def checkpoint(directory: Path, kind: str, tokenizer: PreTrainedTokenizerBase, positions: int) -> Path:
    """Random weights in the real file's format, large enough for rewards that differ."""
    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        rotary_dim=8,
        n_positions=positions,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    weights = {f"transformer.{name}": value for name, value in GPTJModel(config).state_dict().items()}
    weights["v_head.weight"] = torch.randn(1, config.n_embd) / config.n_embd**0.5
    torch.save(weights, directory / FORMATS[kind].checkpoint_file)
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def compare(directory: Path, kind: str, tokenizer: PreTrainedTokenizerBase, groups: Iterable[Group]) -> Comparison:
    """Score groups as a run does, and each text by itself as the specification says."""
    settings = GPTJRewardSection.model_validate({"kind": kind, "path": str(directory), "dtype": "float32"})
    scorer = load_reward_model("reward", settings, Resources(["cpu"], 16384, together=False))
    reference = ReferenceReward(directory, tokenizer)
    plain = {"tldr": reference.tldr, "hh": reference.hh}[kind]
    limit = min(FORMATS[kind].max_tokens, reference.positions)
    actual, expected, truncated = [], [], 0
    for prompt, outputs in groups:
        batch = batch_from_rows(GROUPS, [text_group("g", prompt, outputs)])
        actual += scorer.score(batch)["values"][0].as_py()
        expected += [plain(prompt, output) for output in outputs]
        truncated += sum(len(tokenizer(prompt + output)["input_ids"]) > limit for output in outputs)
    right = torch.tensor(expected)
    difference = (torch.tensor(actual) - right).abs().max()
    return Comparison(len(expected), truncated, right.std().item(), difference.item())
