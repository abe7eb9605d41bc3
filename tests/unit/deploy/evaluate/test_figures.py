import json
import math

import numpy as np
import pytest

from brain_align.deploy.evaluate import figures
from brain_align.deploy.evaluate.figures import Outputs, Texts, own_figures
from brain_align.deploy.evaluate.length_control import length_controlled
from brain_align.deploy.evaluate.text_figures import distinct, repetition

NAN = float("nan")


def duel(ours, theirs):
    found = figures.duel(ours, theirs, "reward")
    assert found is not None
    return found


def texts(values, texts=None):
    return Texts(texts or ["abc"] * len(values), {"reward": np.array(values, dtype=float)})


def outputs(values, words=None, **changes):
    count = len(values)
    facts = {"tokens": [4.0] * count, "finished": [1.0] * count, "log_ratios": [0.5] * count, **changes}
    arrays = {name: np.array(value, dtype=float) for name, value in facts.items()}
    return Outputs(words or ["abc"] * count, {"reward": np.array(values, dtype=float)}, **arrays)


def test_wins_ties_and_losses_are_counted_on_prompts_with_both_values():
    found = duel(texts([1.0, 2.0, 3.0, 4.0, NAN]), texts([0.0, 2.0, 5.0, 1.0, 0.0]))
    assert (found["prompts"], found["wins"], found["ties"], found["losses"]) == (4, 50.0, 25.0, 25.0)
    assert found["difference"]["mean"] == pytest.approx((1 + 0 - 2 + 3) / 4)
    assert found["sign_p"] == 1.0  # two wins and one loss: 2·(1 + 3)/2³, capped
    assert found["win_rate"]["half_width"] == pytest.approx(100 * 1.96 * math.sqrt(0.25 / 4))


def test_turning_a_duel_around_turns_its_figures():
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.3, 1, 200), generator.normal(0, 1, 200)
    words = ["x" * length for length in generator.integers(1, 40, 200)]
    ours, theirs = texts(first, words), texts(second, words[::-1])
    there, back = duel(ours, theirs), duel(theirs, ours)
    assert (there["wins"], there["sign_p"]) == (back["losses"], back["sign_p"])
    assert there["difference"]["low"] == pytest.approx(-back["difference"]["high"])
    assert there["length_controlled"]["rate"] == pytest.approx(100 - back["length_controlled"]["rate"])


def test_no_values_no_duel():
    assert figures.duel(texts([NAN, 1.0]), texts([1.0, NAN]), "reward") is None


def test_a_failed_prompt_is_counted_and_left_out_of_all_means():
    found = own_figures(
        outputs([1.0, 3.0, NAN], ["a b", "a c", None], tokens=[2, 4, NAN], finished=[1, 0, NAN], log_ratios=[1, 2, NAN])
    )
    assert (found["prompts"], found["failed"]) == (2, 1)
    assert found["mean"]["reward"]["mean"] == 2.0
    assert found["mean"]["reward"]["half_width"] == pytest.approx(1.96 * 1 / math.sqrt(2))
    assert (found["tokens"]["mean"], found["finished"]["mean"], found["kl_to_prior"]["mean"]) == (3.0, 50.0, 1.5)
    assert (found["distinct_1"], found["distinct_2"], found["distinct_3"]) == (0.75, 1.0, None)
    assert found["repetition_4"] is None  # nobody says four words


def test_greedy_outputs_have_no_kl():
    assert own_figures(outputs([1.0, 2.0], log_ratios=[NAN, NAN]))["kl_to_prior"] is None


def test_variety_and_repetition_as_documented():
    assert distinct(["a b a b", "a b"], 2) == 0.5
    assert distinct(["", "a"], 2) is None
    assert repetition("a b a b", 2) == pytest.approx(1 / 3)
    assert repetition("a b c") is None
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)


def test_without_differences_in_length_nothing_is_controlled():
    found = length_controlled(np.array([1.0] * 60 + [0.0] * 40), np.zeros(100))
    assert found.rate == pytest.approx(60, abs=0.01)
    # the interval of a proportion on the logit scale: 0.405 ± 1.96/√(100·0.24)
    assert found.low == pytest.approx(100 / (1 + math.exp(-(math.log(1.5) - 1.96 / math.sqrt(24)))), abs=0.05)
    assert found.high == pytest.approx(100 / (1 + math.exp(-(math.log(1.5) + 1.96 / math.sqrt(24)))), abs=0.05)


def test_a_judge_that_only_counts_characters_is_seen_through():
    generator = np.random.default_rng(1)
    lengths = generator.normal(1.0, 1.0, 2000)  # ours are longer
    chance = 1 / (1 + np.exp(-2 * np.tanh(lengths / lengths.std())))
    preferences = (generator.random(2000) < chance).astype(float)
    found = length_controlled(preferences, lengths)
    assert 100 * preferences.mean() > 65
    assert found.low < 50 < found.high
    assert found.length_effect == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("won", [0.0, 0.5, 1.0])
def test_figures_are_finite_where_every_prompt_ends_alike(won):
    found = length_controlled(np.full(50, won), np.arange(50, dtype=np.float64))
    assert all(map(math.isfinite, vars(found).values()))
    assert found.rate == pytest.approx(100 * won, abs=1)


def test_all_figures_are_plain_values():
    ours = outputs([1.0, 2.0], ["a b c d e", "b"])
    assert json.loads(json.dumps([own_figures(ours), duel(ours, texts([0.0, 5.0]))], allow_nan=False))
