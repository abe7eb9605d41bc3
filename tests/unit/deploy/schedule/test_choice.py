"""The best version by win rate or on the Pareto front, within a KL budget; and early stopping."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brain_align.common.config.run import EvaluationSection
from brain_align.deploy.schedule.choice import (
    Candidate,
    best_of,
    clearly_below,
    may_be_best,
    note_on_budget,
    pareto_front,
    reason_to_stop,
)
from tests.unit.deploy.schedule.test_evaluation import evaluation, record


def candidate(version: int, rate: float, kl: float, reward: float = 0.0, prompts: int = 400) -> Candidate:
    """A version that wins the first prompts, `rate` percent of them."""
    return Candidate(version, (rate, reward), kl, (np.arange(prompts) < prompts * rate / 100).astype(float))


RUN = [candidate(0, 25, 0.0), candidate(3, 60, 2.0), candidate(6, 69, 4.0), candidate(9, 70, 22.0)]


def settings(**changes: Any) -> EvaluationSection:
    return EvaluationSection.model_validate(changes)


@pytest.mark.parametrize(
    ("changes", "best"),
    [
        ({}, 9),
        ({"max_kl": 10}, 6),
        ({"max_kl": 2}, 3),
        ({"max_kl": 1}, 0),
        ({"choose": "pareto"}, 9),  # 1 point of 400 prompts, always the same ones: clearly lower
        ({"choose": "pareto", "max_kl": 10}, 6),
    ],
)
def test_the_highest_win_rate_within_the_budget_is_the_best(changes: dict[str, Any], best: int) -> None:
    assert best_of(RUN, settings(**changes)) == best


def test_the_pareto_choice_takes_the_least_kl_that_is_as_good() -> None:
    draw = np.random.default_rng(0)
    noisy = [Candidate(one.version, one.merit, one.kl, draw.random(100) < one.merit[0] / 100) for one in RUN]
    noisy = [Candidate(one.version, one.merit, one.kl, one.gains.astype(float)) for one in noisy]
    assert best_of(noisy, settings(choose="pareto")) in (3, 6)
    assert best_of(noisy, settings(choose="win-rate")) == 9
    assert not clearly_below(noisy[2], noisy[3]) and clearly_below(noisy[0], noisy[3])


def test_dominated_versions_are_not_on_the_front() -> None:
    worse = candidate(12, 60, 5.0)
    twin = candidate(13, 69, 4.0)
    assert [one.version for one in pareto_front([*RUN, worse, twin])] == [0, 3, 6, 9, 13]
    assert may_be_best([*RUN, worse], settings(choose="pareto", max_kl=5)) == [0, 3, 6]
    assert may_be_best(RUN, settings(max_kl=5)) == [6]


def test_where_no_version_is_within_the_budget_the_nearest_is_taken_and_said() -> None:
    assert best_of(RUN[1:], settings(max_kl=1)) == 3
    note = note_on_budget(RUN, settings(max_kl=1))
    assert note is not None and "no trained version is within evaluation.max_kl=1" in note and "version 3" in note
    assert note_on_budget(RUN, settings(max_kl=2)) is None and note_on_budget(RUN, settings()) is None


def test_training_ends_after_so_many_evaluations_without_a_better_version() -> None:
    flat = [*RUN[:3], candidate(9, 69, 5.0), candidate(12, 50, 6.0)]
    assert reason_to_stop(flat[:4], settings(patience=2)) is None
    reason = reason_to_stop(flat, settings(patience=2))
    assert reason is not None
    assert "none of versions 9, 12 is better on validation prompts than version 6" in reason
    assert "(evaluation.patience=2)" in reason
    assert reason_to_stop(flat, settings()) is None and reason_to_stop([], settings(patience=1)) is None
    beyond = reason_to_stop(RUN, settings(patience=1, max_kl=10))  # the last is higher, but too far
    assert beyond is not None and "version 6 within evaluation.max_kl=10" in beyond


def test_an_evaluation_chooses_keeps_and_stops_by_its_recipe(tmp_path: Path) -> None:
    subject = evaluation(tmp_path, every_rounds=1, patience=1, max_kl=0.9)
    record(subject, 0, [0.0] * 4)
    assert subject.stops_with(0) is None and subject.due_versions() == [0, 1, 2, 3, 4]
    record(subject, 1, [2.0, 2.0, 0.0, 0.0])
    assert subject.stops_with(1) is None
    record(subject, 2, [2.0, 2.0, 2.0, 0.0], prior=-3.0)  # KL 1.5: beyond the budget
    assert subject.candidates(2) == [1]
    reason = subject.stops_with(2)
    assert reason is not None and "early with version 2" in reason and subject.stopped == reason
    assert subject.due_versions() == [0, 1, 2] and subject.best_version() == 1
    assert subject.stops_with(2) == reason  # as often as it is asked
