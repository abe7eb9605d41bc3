from pathlib import Path

import pytest

from brain_align.common.config.training import AlgorithmSection
from brain_align.common.errors import UserError
from brain_align.common.requests import Prompt
from brain_align.common.schemas import HUMAN, PRIOR
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.compare.train.derived_stores import check_pairs, deal_pairs, pairs_digest, write_first_outputs
from brain_align.deploy.schedule.request_plan import RequestPlan
from tests.unit.factories import groups, output, scores


def test_the_first_outputs_of_each_group_and_their_scores_are_copied_once(tmp_path: Path) -> None:
    source, target = SampleStore(tmp_path / "source", "run"), SampleStore(tmp_path / "target", "first")
    four = [output([number], [-float(number)], f"text {number}") for number in range(1, 5)]
    source.append_groups(groups("a", "b", outputs=four))
    source.append_groups(groups("c", outputs=four[:1]))
    source.append_scores(scores("reward", {"a": [1.0, None, 3.0, 4.0], "c": [7.0]}, gold_value=0.5, error="odd"))
    source.append_scores(scores(PRIOR, {"a": [-1.0, -2.0, -3.0, -4.0]}))
    for _ in range(2):
        write_first_outputs(source, target, 2)
    assert target.counts() == {"groups": 3, "scores": 3, "steps": 0}
    rows = target.groups(["a", "b", "c"])
    assert [[one["text"] for one in outputs] for outputs in rows["outputs"].to_pylist()] == [
        ["text 1", "text 2"],
        ["text 1", "text 2"],
        ["text 1"],
    ]
    assert target.scores(["a", "c"], "reward").select(["values", "gold_value", "error"]).to_pylist() == [
        {"values": [1.0, None], "gold_value": 0.5, "error": "odd"},
        {"values": [7.0], "gold_value": 0.5, "error": "odd"},
    ]
    assert target.scores(["a"], PRIOR)["values"].to_pylist() == [[-1.0, -2.0]]
    assert target.unscored("reward") == ["b"]


ALGORITHM = AlgorithmSection(rounds=3, prompts_per_round=2, updates_per_round=1, batch_prompts=2)


def test_pairs_are_dealt_out_over_the_rounds_with_their_choices(tmp_path: Path) -> None:
    source, target = SampleStore(tmp_path / "source", "people"), SampleStore(tmp_path / "target", "seed")
    source.append_groups(groups("a", "b", "c", "d", "e"))
    source.append_scores(scores(HUMAN, {name: [1.0, 0.0] for name in "abcd"}, gold_value=None))  # nobody chose in e
    check_pairs(source, ALGORITHM)
    for _ in range(2):
        deal_pairs(source, target, ALGORITHM, seed=0)
    index = target.index().to_pylist()
    by_round = [{row["prompt_id"] for row in index if row["round"] == round_} for round_ in range(3)]
    assert [len(prompts) for prompts in by_round] == [2, 2, 2]
    assert by_round[0] | by_round[1] == {"prompt-a", "prompt-b", "prompt-c", "prompt-d"}  # one epoch
    assert len({row["group_id"] for row in index}) == 6, "a pair that comes again is another group"
    assert target.unscored(HUMAN) == []
    assert target.scores([index[0]["group_id"]], HUMAN)["values"].to_pylist() == [[1.0, 0.0]]
    other = SampleStore(tmp_path / "other", "seed")
    deal_pairs(source, other, ALGORITHM, seed=1)
    assert [row["prompt_id"] for row in other.index().to_pylist()] != [row["prompt_id"] for row in index]


def test_pairs_are_told_apart_by_outputs_and_choices(tmp_path: Path) -> None:
    digests = []
    for number, (token, choice) in enumerate([(1, 1.0), (1, 1.0), (2, 1.0), (1, 0.0)]):
        store = SampleStore(tmp_path / str(number), "people")
        store.append_groups(groups("a", outputs=[output([token], [-1.0], "text"), output([3], [-1.0], "other")]))
        store.append_scores(scores(HUMAN, {"a": [choice, 1 - choice]}, gold_value=None))
        digests.append(pairs_digest(store))
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_a_store_without_enough_pairs_is_refused(tmp_path: Path) -> None:
    source = SampleStore(tmp_path, "people")
    source.append_groups(groups("a", "b"))
    with pytest.raises(UserError, match="holds no human preference pairs; create a store"):
        check_pairs(source, ALGORITHM)
    source.append_scores(scores(HUMAN, {"a": [1.0, 0.0]}))
    with pytest.raises(UserError, match=r"holds 1 pairs, fewer than a round takes \(algorithm\.prompts_per_round=2\)"):
        check_pairs(source, ALGORITHM)


def test_groups_of_the_prior_are_another_run_s_and_later_ones_its_own(tmp_path: Path) -> None:
    prompts = [Prompt("p0", "text", (1,), "gold")]
    seed = RequestPlan("seed", 0, 2, tmp_path)
    runs = [RequestPlan(name, 0, 2, tmp_path, prior_run="seed") for name in ("one", "two")]

    def ids(plan: RequestPlan, version: int) -> tuple[str, ...]:
        return plan.requests("train", version, version, 2, prompts)[0].group_ids

    assert ids(runs[0], 0) == ids(runs[1], 0) == ids(seed, 0)
    assert len({ids(seed, 1), ids(runs[0], 1), ids(runs[1], 1)}) == 3
