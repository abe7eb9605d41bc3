import math

import numpy as np
import pytest

from brain_align.common.inference import (
    clustered_mean,
    fit_over_optimisation,
    mcnemar,
    paired_bootstrap,
    t_test,
)
from brain_align.common.statistics import win_rate


def bools(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text])


def test_one_seed_has_the_paper_s_interval() -> None:
    wins = np.array([[1.0] * 60 + [0.0] * 40])
    estimate = clustered_mean(100 * wins)
    expected = win_rate(wins[0].tolist(), [0.5] * 100)
    assert estimate.mean == pytest.approx(60)
    assert estimate.half_width == pytest.approx(expected.ci95) == pytest.approx(9.602, abs=1e-3)


def test_a_second_seed_with_the_same_outcomes_tells_nothing_new() -> None:
    wins = np.array([[1.0, 0.0, 1.0, 1.0]])
    assert clustered_mean(np.vstack([wins, wins])) == clustered_mean(wins)


def test_seeds_that_disagree_on_every_prompt_make_nothing_sure() -> None:
    first = np.array([1.0, 0.0] * 50)
    both = clustered_mean(np.stack([first, 1 - first]))
    assert both.mean == 0.5
    assert both.half_width == pytest.approx(1.96 * (0.25 / 200) ** 0.5)  # as of 200 independent outcomes


def test_seeds_that_lie_apart_widen_the_interval() -> None:
    apart = clustered_mean(np.stack([np.ones(100), np.zeros(100)]))
    assert apart.half_width == pytest.approx(1.96 * (0.25 / 200 + 0.5 / 2) ** 0.5)  # prompts, and the two seeds' means


def test_a_difference_that_seeds_disagree_on_is_not_certain() -> None:
    few = np.array([[1.0] * 10 + [0.0] * 90, [1.0] * 20 + [0.0] * 80, [-1.0] * 5 + [0.0] * 95])
    found = paired_bootstrap(few)
    assert found.by_seed == pytest.approx([0.1, 0.2, -0.05])
    assert found.difference == pytest.approx(0.25 / 3) and found.low < 0
    assert paired_bootstrap(few.mean(axis=0, keepdims=True)).low > 0, "over prompts alone it would look certain"
    turned = found.turned()
    assert (turned.low, turned.high) == (-found.high, -found.low)
    assert turned.by_seed == pytest.approx([-0.1, -0.2, 0.05])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ("1" * 9 + "0", "0" * 9 + "1", 22 / 1024),  # 2 · (1 + 10) / 2^10
        ("111111", "000000", 2 / 64),
        ("1010", "1010", 1.0),
        ("10", "01", 1.0),
        ("1" * 9 + "0" + "1" * 500, "0" * 9 + "1" + "1" * 500, 22 / 1024),  # what both win has no say
    ],
)
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(ours: str, theirs: str, expected: float) -> None:
    assert mcnemar(bools(ours), bools(theirs)) == pytest.approx(expected)
    assert mcnemar(bools(theirs), bools(ours)) == pytest.approx(expected)


def test_mcnemar_of_many_prompts_does_not_overflow() -> None:
    ours, theirs = np.arange(6553) < 4000, np.arange(6553) >= 4000
    assert 0 <= mcnemar(ours, theirs) < 1e-30


def test_a_bootstrap_interval_is_the_normal_one_where_the_mean_is_normal() -> None:
    differences = np.random.default_rng(1).normal(0.2, 1.0, size=(1, 400))
    found = paired_bootstrap(differences)
    half_width = 1.96 * differences.std() / math.sqrt(400)
    assert found.difference == pytest.approx(differences.mean())
    assert found.low == pytest.approx(found.difference - half_width, abs=0.006)
    assert found.high == pytest.approx(found.difference + half_width, abs=0.006)
    z = differences.mean() / (differences.std() / math.sqrt(400))
    assert found.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.5)
    assert paired_bootstrap(differences) == found


@pytest.mark.parametrize(
    ("t", "seeds", "p"),  # from printed tables of Student's distribution
    [(12.706, 2, 0.05), (4.303, 3, 0.05), (9.925, 3, 0.01), (3.182, 4, 0.05), (2.776, 5, 0.05), (2.262, 10, 0.05)],
)
def test_seeds_alone_are_student_s_test(t: float, seeds: int, p: float) -> None:
    spread = np.linspace(-1, 1, seeds)
    values = spread + t * spread.std(ddof=1) / math.sqrt(seeds)
    assert t_test(values) == pytest.approx(t_test(-values)) == pytest.approx(p, rel=1e-3)
    assert paired_bootstrap(np.tile(values[:, None], (1, 4)), resamples=99).p_seeds == pytest.approx(t_test(values))


def test_seeds_that_agree_exactly_or_that_are_one() -> None:
    assert (t_test(np.array([2.0, 2.0])), t_test(np.zeros(3))) == (0.0, 1.0)
    assert paired_bootstrap(np.ones((1, 10)), resamples=99).p_seeds is None


def test_no_difference_has_a_p_value_of_1_and_a_sure_one_the_smallest() -> None:
    assert paired_bootstrap(np.zeros((1, 10))).p_value == 1.0
    sure = paired_bootstrap(np.ones((2, 10)), resamples=999)
    assert (sure.low, sure.high, sure.p_value) == (1.0, 1.0, 2 / 1000)


def test_the_over_optimisation_fit_finds_the_curve_that_made_the_points() -> None:
    distances = np.array([0.0, 0.3, 0.7, 1.2, 2.0, 3.5])
    gains = np.array([5.0, *(d * (1.5 - 0.8 * math.log(d)) for d in distances[1:])])  # at 0 there is no curve
    fit = fit_over_optimisation(distances, gains)
    assert fit is not None
    assert (fit.a, fit.b, fit.r_squared) == pytest.approx((1.5, 0.8, 1.0))
    assert fit.gain(np.array([2.0])) == pytest.approx([2 * (1.5 - 0.8 * math.log(2))])


def test_three_distances_make_no_curve() -> None:
    assert fit_over_optimisation(np.array([1.0, 1.0, 2.0, 3.0, 0.0]), np.ones(5)) is None
    assert fit_over_optimisation(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4)) is not None
