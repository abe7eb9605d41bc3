"""The figures of the chaos run must be able to fail: each fault of a store is counted, and a good one has none."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs

from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.table.compaction import LARGE, compact
from tests.chaos.counting import Plan, Seen, count
from tests.chaos.stored import Stored, StoreReader
from tests.unit.factories import groups, scores, step

PLAN = Plan(
    rounds=2,
    prompts_per_round=2,
    updates_per_round=1,
    outputs=2,
    max_staleness=1,
    scorers=("reward", "prior"),
)
NOTHING = Seen()
ROUNDS = {0: ["a", "b"], 1: ["c", "d"]}


def good_store(root: Path) -> SampleStore:
    store = SampleStore(root, "run")
    for round_, names in ROUNDS.items():
        store.append_groups(groups(*names, round=round_))
        for scorer in PLAN.scorers:
            store.append_scores(scores(scorer, {name: [1.0, 2.0] for name in names}))
        with store.training():
            store.append_step(step(round_ + 1, names, round=round_, metrics={"trained_prompts": 2.0}))
    return store


def read(root: Path) -> Stored:
    return StoreReader(fs.LocalFileSystem(), str(root)).read()


def wrong(stored: Stored, seen: Seen = NOTHING) -> dict[str, int]:
    return {name: value for name, value in count(stored, PLAN, seen).items() if value}


def delete(root: Path, kind: str, number: int) -> None:
    sorted((root / kind).glob("*.arrow"))[number].unlink()


def test_a_good_store_has_nothing_to_count_also_after_compaction(tmp_path: Path) -> None:
    good_store(tmp_path)
    before = read(tmp_path)
    assert (len(before.groups), len(before.scores), len(before.steps)) == (4, 8, 2)
    assert wrong(before, Seen().joined(before)) == {}
    store = OpenedStore(str(tmp_path), None, read_only=False)
    for catalogue in store.kinds.values():
        compact(store.backend, catalogue, store.author, LARGE)
    assert len(list((tmp_path / "groups").glob("compact-*.arrow"))) == 1, "beside the parts that it replaces"
    assert read(tmp_path) == before


def test_a_lost_group_is_counted_whoever_knows_of_it(tmp_path: Path) -> None:
    good_store(tmp_path)
    seen = Seen().joined(read(tmp_path))
    delete(tmp_path, "groups", 1)
    stored = read(tmp_path)
    assert wrong(stored, seen) == wrong(stored) == {"groups_lost": 2}
    delete(tmp_path, "steps", 1)
    stored = read(tmp_path)
    assert wrong(stored, seen) == wrong(stored) == {"groups_lost": 2, "steps_missing": 1}
    stored.groups.extend(row | {"group_id": f"again-{row['prompt_id']}", "round": 1} for row in stored.groups[:2])
    assert wrong(stored, seen)["groups_lost"] == 2, "others in their place"


def test_a_group_of_two_writers_and_one_sampled_again_are_duplicates(tmp_path: Path) -> None:
    first, second = good_store(tmp_path), SampleStore(tmp_path, "run")
    for store in (first, second):  # neither has seen the other's
        store.append_groups(groups("e", round=1, prompt_id="prompt-d"))
    assert wrong(read(tmp_path)) == {"groups_duplicated": 2, "groups_not_trained": 1}


def test_a_missing_step_and_one_that_trained_nothing_are_missing(tmp_path: Path) -> None:
    good_store(tmp_path)
    delete(tmp_path, "steps", 0)
    assert wrong(read(tmp_path)) == {"steps_missing": 1, "groups_not_trained": 2}
    stored = read(tmp_path)
    stored.steps[0]["metrics"] = [("trained_prompts", 0.0)]
    assert wrong(stored)["steps_missing"] == 2


def test_a_step_recorded_twice_and_a_group_trained_twice_are_counted(tmp_path: Path) -> None:
    good_store(tmp_path)
    stored = read(tmp_path)
    stored.steps.append(stored.steps[0])
    assert wrong(stored) == {"steps_duplicated": 1}
    stored.steps[1]["group_ids"] = ["c", "d", "a"]
    assert wrong(stored) == {"steps_duplicated": 1, "groups_trained_twice": 1}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: row.update(values=[None, None]),
        lambda row: row.update(values=[1.0, None]),
        lambda row: row.update(values=[1.0]),
        lambda row: row.update(values=[1.0, float("nan")]),
        lambda row: row.update(scorer="another"),
    ],
    ids=["all null", "one null", "too few", "NaN", "not scored"],
)
def test_a_trained_group_without_all_its_values_is_counted(tmp_path: Path, spoil: Callable[[dict], None]) -> None:
    good_store(tmp_path)
    stored = read(tmp_path)
    spoil(next(row for row in stored.scores if row["group_id"] == "c" and row["scorer"] == "prior"))
    assert wrong(stored) == {"null_groups_trained": 1}


def test_a_damaged_part_does_not_count_and_is_named(tmp_path: Path) -> None:
    good_store(tmp_path)
    part = sorted((tmp_path / "groups").glob("*.arrow"))[0]
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    stored = read(tmp_path)
    assert stored.damaged == [f"groups/{part.name}"]
    assert wrong(stored) == {"groups_lost": 2, "damaged_files": 1}


def test_groups_that_are_incomplete_or_too_stale_are_counted(tmp_path: Path) -> None:
    good_store(tmp_path)
    stored = read(tmp_path)
    stored.groups[0]["outputs"] = 1
    stored.groups[3].update(round=1, proposal_version=2)
    assert wrong(stored) == {"groups_incomplete": 1, "groups_too_stale": 1}
