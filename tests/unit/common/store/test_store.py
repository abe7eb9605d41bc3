import os
from pathlib import Path

import pyarrow as pa
import pytest

from brain_align.common.durable import temporary_sibling
from brain_align.common.errors import UserError
from brain_align.common.store.maintenance.verification import verify
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.table.compaction import LARGE, compact, remove_superseded
from tests.unit.factories import groups, scores, step


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def filled(root: Path) -> SampleStore:
    store = SampleStore(root, "run")
    store.append_groups(groups("a", "b"))
    store.append_groups(groups("c", round=1))
    store.append_scores(scores("reward", {"a": [1.0, None], "b": [2.0, 3.0]}))
    with store.training():
        store.append_step(step(1, ["a", "b"]))
    return store


def test_everything_acknowledged_is_there_after_reopening(root: Path) -> None:
    filled(root)
    store = SampleStore(root, "run")
    assert store.counts() == {"groups": 3, "scores": 2, "steps": 1}
    assert store.groups(["c", "a"])["group_id"].to_pylist() == ["c", "a"]
    assert store.scores(["b", "a"], "reward")["values"].to_pylist() == [[2.0, 3.0], [1.0, None]]
    assert store.steps()[0]["metrics"] == {"loss": 1.5}
    assert store.step_groups(1) == ["a", "b"]
    assert store.step_groups(2) is None


@pytest.mark.parametrize("reopened", [False, True])
def test_steps_recorded_after_one_are_found_together(root: Path, reopened: bool) -> None:
    store = filled(root)
    with store.training():
        for number in (2, 4, 3):
            store.append_step(step(number, [f"g{number}", "a"]))
    if reopened:
        store = SampleStore(root, "run", read_only=True)
    assert store.recorded_after(2) == {3: ["g3", "a"], 4: ["g4", "a"]}
    assert store.recorded_after(0).keys() == {1, 2, 3, 4}
    assert store.recorded_after(4) == {}


def test_a_store_without_steps_has_none_recorded(root: Path) -> None:
    assert SampleStore(root, "run").recorded_after(0) == {}


def test_committing_twice_is_harmless_and_the_first_stays(root: Path) -> None:
    store = filled(root)
    assert store.append_groups(groups("b", "d", prompt_text="another")) == 1
    assert store.append_scores(scores("reward", {"a": [9.0, None]})) == 0
    with store.training():
        assert store.append_step(step(1, ["c"])) == 0
    reopened = SampleStore(root, "run")
    assert reopened.groups(["b", "d"])["prompt_text"].to_pylist() == ["a prompt", "another"]
    assert reopened.scores(["a"], "reward")["values"].to_pylist() == [[1.0, None]]
    assert reopened.counts() == {"groups": 4, "scores": 2, "steps": 1}


def values_of(store: SampleStore) -> list[list[float | None]]:
    listed = {row["group_id"]: row["values"] for batch in store.score_batches() for row in batch.to_pylist()}
    values: list[list[float | None]] = store.scores(["a", "b", "c"], "reward")["values"].to_pylist()
    assert values == [listed[name] for name in "abc"]
    return values


@pytest.mark.parametrize("settled", [False, True])  # whether the rows with nulls are in the hash table already
@pytest.mark.parametrize("tidied", ["not at all", "compacted", "indexed"])
def test_null_is_filled_once_and_no_value_ever_changes(root: Path, settled: bool, tidied: str) -> None:
    store = SampleStore(root, "run")
    store.append_groups(groups("a", "b", "c"))
    null = scores("reward", {"a": [1.0, None], "b": [None, None], "c": [3.0, 4.0]}, error="away", gold_value=None)
    store.append_scores(null)
    follower = SampleStore(root, "run", read_only=True)
    if settled:
        store = SampleStore(root, "run")
    assert store.nulls("reward").to_pydict() == {"group_id": ["a", "b"], "values": [1, 0], "nulls": [1, 2]}
    assert store.append_scores(scores("reward", {"a": [9.0, 2.0], "b": [None, 5.0], "c": [9.0, 9.0]}, error="x")) == 2
    expected = [[1.0, 2.0], [None, 5.0], [3.0, 4.0]]
    assert values_of(store) == expected
    assert store.scores(["a", "b"], "reward").select(["error", "gold_value"]).to_pydict() == {
        "error": [None, "x"],
        "gold_value": [0.5, 0.5],
    }
    assert values_of(follower) == [[1.0, None], [None, None], [3.0, 4.0]]  # until it looks again
    assert SampleStore(root, "run").append_scores(scores("reward", {"b": [6.0, 7.0]})) == 1  # another opening
    store.refresh()
    assert store.append_scores(scores("reward", {"b": [8.0, 8.0]})) == 0
    expected[1] = [6.0, 5.0]
    if tidied == "compacted":
        opened = OpenedStore(root, None, read_only=False)
        assert compact(opened.backend, opened.kinds["scores"], opened.author, LARGE)
        assert remove_superseded(opened.backend, opened.kinds["scores"], grace=0.0)
    elif tidied == "indexed":
        OpenedStore(root, None, read_only=False).kinds["scores"].write_index(at_least=1)
    follower.refresh()
    for opening in (store, follower, SampleStore(root, "run")):
        opening.refresh()
        assert values_of(opening) == expected
        assert opening.nulls("reward").num_rows == 0
        assert opening.counts()["scores"] == 3 and len(opening.unscored("reward")) == 0
        assert [(one.groups, one.nulls) for one in opening.scorers()] == [(3, 0)]
    assert verify(root).problems == []


def test_rows_with_other_columns_are_not_committed(root: Path) -> None:
    store = filled(root)
    with pytest.raises(ValueError, match="groups rows have columns"):
        store.append_groups(groups("d").drop_columns(["seed"]))
    assert SampleStore(root, "run").counts()["groups"] == 3


def test_two_scorers_stand_side_by_side(root: Path) -> None:
    store = filled(root)
    store.append_scores(scores("prior", {"a": [-1.0, -2.0]}))
    assert store.has_score("a", "prior") and not store.has_score("b", "prior")
    assert store.scores(["a"], "reward")["values"].to_pylist() == [[1.0, None]]


def test_values_of_two_scorers_do_not_stand_under_one_name(root: Path) -> None:
    store = SampleStore(root, "run")
    store.append_groups(groups("a", "b"))
    store.append_scores(scores("reward", {"a": [1.0, 2.0]}))
    other = scores("reward", {"b": [1.0, 2.0]}, scorer_digest="other")
    for opened in (store, SampleStore(root, "run")):
        with pytest.raises(UserError, match=r"'reward' \(digest digest; this one's is other\).*under another name"):
            opened.append_scores(other)
    theirs = SampleStore(root, "run")
    theirs.append_scores(scores("second", {"a": [1.0, 2.0]}, scorer_digest="theirs"))
    store.refresh()
    with pytest.raises(UserError, match="digest theirs"):
        store.append_scores(scores("second", {"b": [1.0, 2.0]}, scorer_digest="ours"))
    assert store.unscored("reward") == ["b"] and store.unscored("second") == ["b"]


def test_many_are_asked_for_at_once(root: Path) -> None:
    store = SampleStore(root, "run")
    store.append_groups(groups("a", "b"))
    store.append_scores(scores("reward", {"b": [1.0, 2.0]}))
    assert store.has_groups(["b", "z", "a"]).tolist() == [True, False, True]
    assert store.has_scores(["b", "z", "a"], "reward").tolist() == [True, False, False]
    assert store.has_groups([]).tolist() == []


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign", "empty"])
def test_a_damaged_part_is_named_set_aside_and_loses_nothing_else(root: Path, damage: str) -> None:
    filled(root)
    part = sorted((root / "groups").iterdir())[0]
    content = part.read_bytes()
    if damage == "truncate":
        part.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        part.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif damage == "empty":
        part.write_bytes(b"")
    else:
        part = part.with_name("notes.arrow")
        part.write_bytes(b"not ours")
    store = SampleStore(root, "run")
    assert len(store.damaged) == 1 and str(part) in store.damaged[0]
    assert [entry.name for entry in (root / "damaged").iterdir()] == [f"groups-{part.name}"]
    expected = {"c"} if damage != "foreign" else {"a", "b", "c"}
    assert set(store.group_ids) == expected
    assert SampleStore(root, "run").damaged == []


def test_every_truncation_of_a_part_is_found(root: Path) -> None:
    filled(root)
    part = sorted((root / "groups").iterdir())[1]
    content = part.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 50)):
        part.write_bytes(content[:length])
        assert set(SampleStore(root, "run").group_ids) == {"a", "b"}, f"truncated to {length} bytes"


def test_an_unfinished_part_is_never_read(root: Path) -> None:
    filled(root)
    part = sorted((root / "groups").iterdir())[0]
    unfinished = temporary_sibling(part)
    unfinished.write_bytes(part.read_bytes())
    assert SampleStore(root, "run").counts()["groups"] == 3
    assert unfinished.exists()  # perhaps a writer is at work on it
    os.utime(unfinished, (0, 0))
    assert SampleStore(root, "run").counts()["groups"] == 3
    assert not unfinished.exists() and len(list((root / "groups").iterdir())) == 2


def test_the_store_of_another_run_is_refused(root: Path) -> None:
    filled(root)
    with pytest.raises(UserError, match=r"belongs to run run, not to other"):
        SampleStore(root, "other")


def test_rows_that_break_the_schema_are_refused(root: Path) -> None:
    store = SampleStore(root, "run")
    with pytest.raises(pa.ArrowInvalid, match="prompt_text"):
        store.append_groups(groups("a", prompt_text=None))
    assert store.counts()["groups"] == 0
