import asyncio
import math
from typing import cast

import pytest

import brain_align
from tests.unit.factories import recipe_settings

HERE = __name__
SCORERS = {
    "length": {"kind": "function", "function": f"{HERE}:lengths"},
    "unhurried": {"kind": "function", "function": f"{HERE}:unhurried"},
    "picky": {"kind": "function", "function": f"{HERE}:picky"},
}
RECIPE = recipe_settings(
    scorers=SCORERS,
    rewards={"both": {"kind": "min", "weights": {"length": 1.0, "picky": 1.0}}},
    objective={"reward": "length"},
)
calls: list[tuple[list[str], list[str]]] = []


def lengths(prompts, outputs):
    calls.append((prompts, outputs))
    return [100 * len(prompt) + len(output) for prompt, output in zip(prompts, outputs, strict=True)]


async def unhurried(prompts, outputs):
    await asyncio.sleep(0)
    return [2.0] * len(outputs)


def picky(prompts, outputs):
    return [float("nan") if output == "bad" else 1.0 for output in outputs]


def test_outputs_are_scored_for_the_prompt_in_their_place():
    score = brain_align.load_scorer(RECIPE, "length")
    calls.clear()
    assert score(["p", "qq", "p"], ["a", "bb", "ccc"]) == [101.0, 202.0, 103.0]
    assert calls == [(["p", "p"], ["a", "ccc"]), (["qq"], ["bb"])], "the outputs of a prompt are one group"
    assert score([], []) == []
    assert score.name == "length" and len(score.digest) == 32


def test_a_value_that_cannot_be_computed_is_nan_and_said():
    score = brain_align.load_scorer(RECIPE, "picky")
    with pytest.warns(UserWarning, match="picky has no value for 1 outputs: output 1 has the value nan"):
        values = score(["p"] * 3, ["a", "bad", "c"])
    assert values[0] == values[2] == 1.0 and math.isnan(values[1])


@pytest.mark.parametrize(("prompts", "outputs"), [(["p"], ["a", "b"]), ("p", "a"), (["p"], "a")])
def test_prompts_and_outputs_are_lists_of_one_length(prompts, outputs):
    with pytest.raises(ValueError, match="a list of prompts and a list of as many outputs"):
        brain_align.load_scorer(RECIPE, "length")(prompts, outputs)


def test_a_text_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"'\\ud800' is not a text of Unicode characters"):
        brain_align.load_scorer(RECIPE, "length")(["p"], ["\ud800"])
    with pytest.raises(ValueError, match="None is not a text"):
        brain_align.load_scorer(RECIPE, "length")(["p"], cast(list[str], [None]))


def test_a_notebook_which_has_an_event_loop_may_score():
    score = brain_align.load_scorer(RECIPE, "unhurried")

    async def cell():
        return score(["p"], ["a"])

    assert asyncio.run(cell()) == score(["p"], ["a"]) == [2.0]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent", "'absent' does not name a scorer; the recipe has length, unhurried, picky"),
        ("both", "the recipe has length, unhurried, picky, which 'both' is made of"),
        ("prior", "'prior' scores token ids, not texts: use sequence_logprobs"),
    ],
)
def test_what_is_not_a_scorer_of_texts_is_refused(name, sentence):
    with pytest.raises(brain_align.UserError, match=sentence):
        brain_align.load_scorer(RECIPE, name)
