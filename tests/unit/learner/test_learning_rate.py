import pytest

from brain_align.common.config.training import AlgorithmSection, LearnerSection
from brain_align.learner.trainer import learning_rate


def rates(steps, **settings):
    learner = LearnerSection(learning_rate=0.8, **settings)
    algorithm = AlgorithmSection(rounds=2, updates_per_round=5)
    return [learning_rate(step, learner, algorithm) for step in steps]


def test_constant_after_a_linear_warm_up():
    assert rates((1, 2, 4, 5, 100), warmup_steps=4) == [0.2, 0.4, 0.8, 0.8, 0.8]
    assert rates((1, 10)) == [0.8, 0.8]


def test_linear_falls_by_equal_amounts_and_ends_one_before_zero():
    # 10 steps: without warm-up 0.8·(1, 9/10, …, 1/10); after 5 of warm-up 0.8·(1, 5/6, 4/6, …, 1/6).
    assert rates((1, 2, 10), schedule="linear") == pytest.approx([0.8, 0.72, 0.08])
    assert rates((1, 5, 6, 10), schedule="linear", warmup_steps=5) == pytest.approx([0.16, 0.8, 4 / 6, 0.8 / 6])


def test_cosine_passes_through_the_middle():
    # The full value at step 1, zero at step 11; cos(π/2) = 0 at step 6, cos(π/5) = (1 + √5)/4 at step 3.
    assert rates((1, 6, 11), schedule="cosine") == pytest.approx([0.8, 0.4, 0.0])
    assert rates((3,), schedule="cosine")[0] == pytest.approx(0.4 * (1 + (1 + 5**0.5) / 4))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_longer_than_the_run_stays_a_warm_up(schedule):
    assert rates((1, 10), schedule=schedule, warmup_steps=40) == pytest.approx([0.02, 0.2])
    assert all(rate >= 0 for rate in rates(range(1, 11), schedule=schedule, warmup_steps=10))
