from pathlib import Path

from common.leases import Prompt
from common.schemas import PRIOR
from common.store import SampleStore
from deploy.compare.first_outputs import write_first_outputs
from deploy.lease_plan import LeasePlan
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


def test_groups_of_the_prior_are_another_run_s_and_later_ones_its_own(tmp_path: Path) -> None:
    prompts = [Prompt("p0", "text", (1,), "gold")]
    seed = LeasePlan("seed", 0, 2, tmp_path)
    cells = [LeasePlan(name, 0, 2, tmp_path, prior_run="seed") for name in ("one", "two")]

    def ids(plan: LeasePlan, version: int) -> tuple[str, ...]:
        return plan.leases("train", version, version, 2, prompts)[0].group_ids

    assert ids(cells[0], 0) == ids(cells[1], 0) == ids(seed, 0)
    assert len({ids(seed, 1), ids(cells[0], 1), ids(cells[1], 1)}) == 3
