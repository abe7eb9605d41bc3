import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from brain_align.common.config.sampling import SamplingSection
from brain_align.common.requests import Prompt, SampleRequest
from brain_align.sampler.engine.data import Completion
from brain_align.sampler.generation import Generation, generate_groups
from tests.unit.tiny_models import gpt2_like_tokenizer

PROMPT = Prompt("p", "the cat", (1, 2), None)


class Recording:
    """An engine that keeps what it was asked for."""

    asked: SamplingSection

    async def sample(self, _prompts, sampling, **_how):
        self.asked = sampling
        yield 0, [Completion([3], [-1.0], "length")]


@pytest.mark.parametrize("greedy", [False, True])
def test_a_greedy_request_is_sampled_at_temperature_zero_and_others_as_the_recipe_says(greedy) -> None:
    recipe = SamplingSection(
        temperature=0.7, top_p=0.9, max_tokens=5, allow_tempered=True, allow_truncated_support=True
    )
    request = SampleRequest("test-0", "test", 0, 0, 1, 1, ("g",), (PROMPT,), "policies", greedy=greedy)
    used: Any = SimpleNamespace(adapter=None, proposal=SimpleNamespace(version=0, digest="digest"))
    engine: Any = Recording()

    async def rows() -> list[dict[str, object]]:
        how = Generation(recipe, [0], gpt2_like_tokenizer(), "sampler-0")
        return [
            row
            for batch in [one async for one in generate_groups(engine, request, used, how)]
            for row in batch.to_pylist()
        ]

    (row,) = asyncio.run(rows())
    assert (engine.asked.temperature, engine.asked.top_p) == ((0.0, 1.0) if greedy else (0.7, 0.9))
    assert engine.asked.max_tokens == row["max_tokens"] == 5
    assert row["temperature"] == pytest.approx(0.0 if greedy else 0.7)
    assert recipe.temperature == 0.7
