"""Scores as a run computes them, against the plain reading of the specification."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from transformers import GPT2TokenizerFast, GPTJConfig, GPTJModel, PreTrainedTokenizerBase

from common.schemas import GROUPS, batch_from_rows
from scorer.formats import FORMATS
from scorer.reward_model import load_reward_model
from tests.reference import texts
from tests.reference.reward_models import ReferenceReward
from tests.unit.factories import group, output
from tests.unit.tiny_models import gpt2_like_tokenizer

TOLERANCE = 1e-5
GPT2 = texts.DATA / "tokenizers" / "gpt2"
needs_data = pytest.mark.skipif(not GPT2.is_dir(), reason=f"the real texts and vocabulary are not in {texts.DATA}")


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


def compare(
    directory: Path, kind: str, tokenizer: PreTrainedTokenizerBase, groups: Iterable[texts.Group]
) -> tuple[int, int]:
    """Score groups as a run does; returns how many texts were compared, and how many of them were truncated."""
    scorer = load_reward_model("reward", str(directory), FORMATS[kind], "float32", "cpu", max_tokens=16384)
    reference = ReferenceReward(directory, tokenizer)
    plain = {"tldr": reference.tldr, "hh": reference.hh}[kind]
    limit = min(FORMATS[kind].max_tokens, reference.positions)
    compared, truncated = [], 0
    for prompt, outputs in groups:
        rows = [group("g", prompt_text=prompt, gold_text=None, outputs=[output([1], [0.0], y) for y in outputs])]
        (row,) = scorer.score(batch_from_rows(GROUPS, rows)).to_pylist()
        assert row["error"] is None
        expected = [plain(prompt, y) for y in outputs]
        assert row["values"] == pytest.approx(expected, abs=TOLERANCE, rel=0)
        compared += expected
        truncated += sum(len(tokenizer(prompt + y)["input_ids"]) > limit for y in outputs)
    assert torch.tensor(compared).std() > 0.1  # or there would be nothing to tell apart
    return len(compared), truncated


@pytest.mark.parametrize(("kind", "prompt"), [("tldr", texts.POST), ("hh", texts.DIALOGUE)])
def test_made_up_texts(tmp_path, kind, prompt):
    tokenizer = gpt2_like_tokenizer()
    checkpoint(tmp_path, kind, tokenizer, positions=256)
    compared, truncated = compare(tmp_path, kind, tokenizer, texts.made_up(prompt, longest=9))
    assert compared == 50
    assert truncated >= 10


@needs_data
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "groups", "count"), [("tldr", texts.tldr, 80), ("hh", texts.hh, 60)], ids=["tldr", "hh"]
)
def test_real_texts_with_the_real_vocabulary(tmp_path, kind, groups, count):
    tokenizer = GPT2TokenizerFast.from_pretrained(GPT2)
    checkpoint(tmp_path, kind, tokenizer, positions=2048)
    compared, truncated = compare(tmp_path, kind, tokenizer, groups(count))
    assert compared == 8 * count  # more than 1,000 with both formats
    assert truncated >= 40
