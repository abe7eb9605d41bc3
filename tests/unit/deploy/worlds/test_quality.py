import math

import pytest

from brain_align.deploy.worlds.pretrained.quality import agreement, quality, shortcoming


def test_figures_of_four_pairs_by_hand():
    found = quality([1.0, -1.0, 2.0, 0.0], longer=[3, 1, -2, 0], longer_in_training=[5, 1, -1])
    assert (found["accuracy"], found["ties"], found["pairs"]) == (0.5, 0.25, 4)
    assert found["accuracy_ci95"] == pytest.approx(1.96 * 0.5 / 2, abs=1e-4)
    assert (found["length_prefers"], found["length_accuracy"]) == ("longer", 0.625)  # 1, 1, 0, and a half for the tie
    assert found["above_length"] == -0.125
    losses = [math.log1p(math.exp(-margin)) for margin in (1, -1, 2, 0)]
    assert found["log_loss"] == pytest.approx(sum(losses) / 4, abs=1e-4)
    one, two = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    assert found["confidence"] == pytest.approx((2 * one + two + 0.5) / 4, abs=1e-4)
    # bins: σ(1) twice with half right, σ(2) once, 0.5 once and wrong
    assert found["calibration_error"] == pytest.approx((2 * (one - 0.5) + (1 - two) + 0.5) / 4, abs=1e-4)


def test_length_prefers_what_was_chosen_in_training():
    found = quality([1.0] * 4, longer=[1, 1, 1, -1], longer_in_training=[-900, -1, 2])
    assert (found["length_prefers"], found["length_accuracy"]) == ("shorter", 0.25)


def test_a_calibrated_model_has_no_calibration_error():
    margin = math.log(3)  # σ = 0.75
    found = quality([margin] * 75 + [-margin] * 25, [1] * 100, [1])
    assert found["calibration_error"] == pytest.approx(0, abs=1e-4)
    assert found["confidence"] == found["accuracy"] == 0.75


def test_agreement():
    found = agreement([1, 2, -1, -3], [2, 4, -2, 1])
    assert found["share"] == 0.75 and found["correlation"] > 0.5
    assert agreement([1, 1], [1, 1])["correlation"] is None


@pytest.mark.parametrize(
    ("right", "longer_chosen", "words"),
    [
        (52, 50, "THE REWARD MODEL IS NO BETTER THAN A COIN"),
        (70, 80, "NOT SHOWN TO BE BETTER THAN LENGTH"),
        (70, 67, "NOT SHOWN TO BE BETTER THAN LENGTH"),  # by 3.0 ± 3.3 points
        (70, 60, None),
    ],
)
def test_a_model_no_better_than_a_coin_or_length_is_said_loudly(right, longer_chosen, words):
    margins, longer = [1.0] * right + [-1.0] * (100 - right), [1] * longer_chosen + [-1] * (100 - longer_chosen)
    found = shortcoming("reward", quality(margins, longer, [1]))
    assert found is None if words is None else found is not None and words in found
