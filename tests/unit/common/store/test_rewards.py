from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brain_align.common.config.scorers import CombinationSection
from brain_align.common.schemas import PRIOR
from brain_align.common.store.rewards import combine, stored_rewards
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.training_batch import training_batch
from tests.unit.factories import groups, output, scores

NAN = float("nan")


def combination(kind: str, step: float = 0, **weights: float) -> CombinationSection:
    return CombinationSection.model_validate({"kind": kind, "weights": weights, "step": step})


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        (combination("weighted-sum", a=1, b=-0.5), [[1, 2], [4, 2]], [-1, 1]),
        (combination("min", a=1, b=2), [[3, 1], [1, 4]], [2, 1]),
        (combination("min", a=-1, b=1), [[3, -1], [1, 4]], [-3, 1]),
        # The second scorer decides between the first, third and last alone; equal texts have one place.
        (combination("lexicographic", a=1, b=1), [[1, 0, 1, 2, 1], [5, 9, 7, -3, 5]], [1, 0, 2, 3, 1]),
        (combination("lexicographic", a=1, b=-1), [[1, 1, 0], [5, 7, 9]], [2, 1, 0]),
        (combination("lexicographic", step=1, a=1, b=1), [[1.2, 1.9, 0.1], [3, 2, 9]], [2, 1, 0]),
        # In float32 0.7 and 50.6 are a little less, and 0.3 is a little more: they are in the bins that begin there.
        (combination("lexicographic", step=0.1, a=1, b=1), [[0.7, 0.75, 0.69], [1, 2, 3]], [1, 2, 0]),
        (combination("lexicographic", step=0.1, a=1, b=1), [[50.6, 50.65, 50.59], [1, 2, 3]], [1, 2, 0]),
        (combination("lexicographic", step=0.1, a=-1, b=1), [[0.3, 0.25, 0.31], [1, 2, 3]], [1, 2, 0]),
    ],
)
def test_combinations(section: CombinationSection, values: Any, expected: list[float]) -> None:
    assert combine(np.array(values, np.float32).astype(float), section).tolist() == expected


@pytest.mark.parametrize("kind", ["weighted-sum", "min", "lexicographic"])
def test_what_lacks_a_value_has_no_reward_and_changes_no_other(kind: str) -> None:
    section = combination(kind, a=1, b=1)
    values = np.array([[1, NAN, 2, 3], [4, 5, NAN, 6]])
    found = combine(values, section)
    assert np.isnan(found).tolist() == [False, True, True, False]
    assert found[[0, 3]].tolist() == combine(values[:, [0, 3]], section).tolist()
    assert np.isnan(combine(np.full((2, 3), NAN), section)).all()


def test_another_combination_of_the_same_scores_gives_other_rewards(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, "run")
    store.append_groups(groups("a"))
    store.append_groups(groups("b", outputs=[output([1], [-1.0])] * 3))
    store.append_scores(scores("reward", {"a": [1.0, 2.0], "b": [3.0, None, 5.0]}))
    store.append_scores(scores("length", {"b": [10.0, 20.0, 30.0], "a": [1.0, 1.0]}, gold_value=None))
    store.append_scores(scores(PRIOR, {"b": [0.0, 0.0, 0.0], "a": [0.0, 0.0]}))

    def rewards(reward: str | CombinationSection) -> Any:
        return training_batch(store, ["b", "a"], reward=reward, prior=PRIOR)["rewards"].to_pylist()

    assert rewards("reward") == [[3, None, 5], [1, 2]]
    assert rewards(combination("weighted-sum", reward=1, length=-0.5)) == [[-2, None, -10], [0.5, 1.5]]
    assert rewards(combination("min", reward=1, length=1)) == [[3, None, 5], [1, 1]]
    assert rewards(combination("lexicographic", length=1, reward=1)) == [[0, None, 1], [0, 1]]


def test_gold_takes_part(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, "run")
    store.append_groups(groups("a"))
    store.append_scores(scores("reward", {"a": [1.0, 2.0]}, gold_value=1.0))
    store.append_scores(scores("length", {"a": [7.0, 2.0]}, gold_value=8.0))
    found = stored_rewards(store, ["a"], combination("lexicographic", reward=1, length=1)).to_pylist()
    assert found == [{"values": [0, 2], "gold_value": 1}]
    found = stored_rewards(store, ["a"], combination("weighted-sum", reward=1, length=1)).to_pylist()
    assert found == [{"values": [8, 4], "gold_value": 9}]
