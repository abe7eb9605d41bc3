from pathlib import Path

import pytest

from brain_align.common.schemas import PRIOR, PROPOSAL, TRAIN_BATCH
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.training_batch import training_batch
from tests.unit.factories import groups, output, scores


def test_groups_meet_their_own_scores_in_the_order_asked_for(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, "run")
    store.append_groups(groups("a"))
    long = [output([1, 2, 3], [-1.0, -2.0, -4.0]), output([], []), output([9], [-0.5])]
    store.append_groups(groups("b", outputs=long))
    store.append_scores(scores("reward", {"a": [1.0, 2.0], "b": [3.0, None, 5.0]}))
    store.append_scores(scores(PRIOR, {"b": [-7.0, 0.0, -0.5], "a": [-1.5, -2.5]}))
    batch = training_batch(store, ["b", "a"], reward="reward", prior=PRIOR)
    assert batch.schema.equals(TRAIN_BATCH)
    rows = batch.to_pylist()
    assert [row["group_id"] for row in rows] == ["b", "a"]
    assert rows[0]["output_token_ids"] == [[1, 2, 3], [], [9]]
    assert rows[0]["proposal_logprobs"] == [-7.0, 0.0, -0.5]
    assert rows[0]["rewards"] == [3.0, None, 5.0]
    assert rows[1]["proposal_logprobs"] == [-0.75, -1.0]
    assert rows[1]["prior_logprobs"] == [-1.5, -2.5]
    assert [row["sampler_logprobs"] for row in rows] == [row["proposal_logprobs"] for row in rows]


def test_recomputed_proposal_log_probabilities_take_the_place_of_the_sampler_s(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, "run")
    store.append_groups(groups("a"))
    annotations: dict[str, list[float | None]] = {
        "reward": [1.0, 2.0],
        PRIOR: [-1.5, -2.5],
        PROPOSAL: [-0.7, None],
    }
    for name, values in annotations.items():
        store.append_scores(scores(name, {"a": values}))
    (row,) = training_batch(store, ["a"], reward="reward", prior=PRIOR, proposal=PROPOSAL).to_pylist()
    assert row["sampler_logprobs"] == [-0.75, -1.0]
    assert row["proposal_logprobs"] == [pytest.approx(-0.7), None]


def test_a_group_that_is_not_scored_is_an_error(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, "run")
    store.append_groups(groups("a"))
    with pytest.raises(KeyError):
        training_batch(store, ["a"], reward="reward", prior=PRIOR)
