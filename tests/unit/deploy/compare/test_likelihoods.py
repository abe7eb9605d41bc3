import math

import numpy as np
import pytest

from brain_align.deploy.compare.examine.likelihoods import StoredValues, drifts, ranking_accuracy

NAN = math.nan


def row(*values: float) -> np.ndarray:
    return np.array(values)


def test_ranking_accuracy_counts_pairs_in_order() -> None:
    assert ranking_accuracy([row(-1, -2, -3)], [row(3, 1, 2)]) == pytest.approx(2 / 3)


def test_ties_of_rewards_and_missing_values_make_no_pair_and_groups_count_equally() -> None:
    logprobs = [row(-1, -2, -3, -4), row(-2, -1), row(-1, -2)]
    rewards = [row(5, 5, NAN, 1), row(2, 1), row(4, 4)]
    # of the first, (5, 1) twice, both in order; of the second its only pair is not; the third has none
    assert ranking_accuracy(logprobs, rewards) == pytest.approx(0.5)
    assert ranking_accuracy([row(-1, NAN)], [row(1, 2)]) is None


def test_equal_likelihoods_are_not_in_order() -> None:
    assert ranking_accuracy([row(-1, -1)], [row(2, 1)]) == 0


def test_drift_is_that_of_the_best_and_of_the_worst_output() -> None:
    values = StoredValues(["a", "b", "c"], [row(1, 3, 2), row(4, NAN, 0), row(1, 1, 1)], [row(-1, -2, -3)] * 3)
    logprobs = [row(-1, -1, -9), row(-4, 0, -5), row(0, 0, 0)]
    chosen, rejected = drifts(logprobs, values)
    assert chosen == pytest.approx((1 - 3) / 2)  # a: -1 + 2; b: -4 + 1
    assert rejected == pytest.approx((0 - 2) / 2)  # a: -1 + 1; b: -5 + 3; c has one reward only
    assert drifts([row(0, 0)], StoredValues(["c"], [row(1, 1)], [row(0, 0)])) == (None, None)


def test_the_posterior_weighs_rewards_by_the_temperature() -> None:
    values = StoredValues(["a"], [row(1, 0)], [row(-2, -1)])
    assert values.posterior(0.5)[0].tolist() == [0.0, -1.0]
