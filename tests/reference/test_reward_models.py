"""Scores as a run computes them, against the plain reading of the specification."""

import pytest
from transformers import GPT2TokenizerFast

from tests.reference import texts
from tests.reference.comparison import checkpoint, compare
from tests.unit.tiny_models import gpt2_like_tokenizer

TOLERANCE = 1e-5
GPT2 = texts.DATA / "tokenizers" / "gpt2"
needs_data = pytest.mark.skipif(not GPT2.is_dir(), reason=f"the real texts and vocabulary are not in {texts.DATA}")


@pytest.mark.parametrize(("kind", "prompt"), [("tldr", texts.POST), ("hh", texts.DIALOGUE)], ids=["tldr", "hh"])
def test_made_up_texts(tmp_path, kind, prompt):
    tokenizer = gpt2_like_tokenizer()
    checkpoint(tmp_path, kind, tokenizer, positions=256)
    found = compare(tmp_path, kind, tokenizer, texts.made_up(prompt, longest=9))
    assert found.largest_difference <= TOLERANCE
    assert found.texts == 50
    assert found.truncated >= 10
    assert found.spread > 0.1  # or there would be nothing to tell apart


@needs_data
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "groups", "count"), [("tldr", texts.tldr, 80), ("hh", texts.hh, 60)], ids=["tldr", "hh"]
)
def test_real_texts_with_the_real_vocabulary(tmp_path, kind, groups, count):
    tokenizer = GPT2TokenizerFast.from_pretrained(GPT2)
    checkpoint(tmp_path, kind, tokenizer, positions=2048)
    found = compare(tmp_path, kind, tokenizer, groups(count))
    assert found.largest_difference <= TOLERANCE
    assert found.texts == 8 * count  # more than 1,000 with both formats
    assert found.truncated >= 40
    assert found.spread > 0.1
