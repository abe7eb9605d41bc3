"""How a store lies on disk: names, index files, compaction, several writers, and files that are not its own."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from pyarrow import fs

from brain_align.common.durable import new_directory
from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.store import manifest, opened_store
from brain_align.common.store.files.backends import LocalBackend
from brain_align.common.store.files.object_store import ObjectStore, open_object_store
from brain_align.common.store.format.names import checksum, commit_name, is_part, plain_file
from brain_align.common.store.format.part_files import encode_part
from brain_align.common.store.maintenance import verification
from brain_align.common.store.maintenance.removal import Criterion, plan_removal, remove
from brain_align.common.store.maintenance.repair import repair
from brain_align.common.store.maintenance.verification import verify
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.table import compaction
from brain_align.common.store.table.catalogue import Catalogue
from brain_align.common.store.table.compaction import LARGE, SMALL, compact, remove_superseded
from brain_align.common.uris import shown
from brain_align.deploy.run.stored_source import locate
from tests.locations import memory_directory
from tests.unit.factories import groups, scores, step


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    with memory_directory(tmp_path) as directory:
        yield directory / "store"


def filled(root: Path, leases: int = 4) -> SampleStore:
    """Leases of two groups; the last lease has one score only."""
    store = SampleStore(root, "run")
    for lease in range(leases):
        names = [f"{lease}-a", f"{lease}-b"]
        store.append_groups(groups(*names, round=lease, proposal_version=lease, finished_at=float(lease)))
        scored = names if lease < leases - 1 else names[:1]
        store.append_scores(scores("reward", {name: [float(lease), None] for name in scored}))
        with store.training():
            store.append_step(step(lease + 1, names, round=lease))
    return store


def everything(store: SampleStore) -> tuple[object, ...]:
    rows = [batch.to_pylist() for batch in store.batches()]
    return (
        rows,
        list(store.group_ids),
        store.steps(),
        store.scorers(),
        store.unscored("reward"),
        store.index().to_pylist(),
    )


def compacted(root: Path, grace: float | None = None) -> None:
    store = OpenedStore(root, None, read_only=False)
    for catalogue in store.kinds.values():
        compact(store.backend, catalogue, store.author, LARGE)
        if grace is not None:
            remove_superseded(store.backend, catalogue, grace)
        catalogue.write_index(at_least=1)


def with_index(root: Path) -> None:
    for catalogue in OpenedStore(root, None, read_only=False).kinds.values():
        catalogue.write_index(at_least=1)


def names(root: Path, kind: str) -> list[str]:
    return sorted(path.name for path in (root / kind).iterdir())


def test_the_light_rows_say_what_the_parts_hold(root: Path) -> None:
    store = filled(root)
    row = store.index().to_pylist()[2]
    assert row == {
        "group_id": "1-a",
        "prompt_id": "prompt-1-a",
        "round": 1,
        "proposal_version": 1,
        "outputs": 2,
        "tokens": 3 + 2 + 1,
        "started_at": 1.0,
        "finished_at": 1.0,
    }
    assert store.unscored("reward") == ["3-b"]
    (facts_,) = store.scorers()
    assert (facts_.groups, facts_.nulls, facts_.mean, facts_.min, facts_.max) == (7, 7, 9 / 7, 0.0, 3.0)


def test_scores_that_are_all_null_have_no_statistics(root: Path) -> None:
    store = SampleStore(root, "run")
    store.append_scores(scores("reward", {"a": [None, None], "b": []}))
    (found,) = store.scorers()
    assert (found.groups, found.nulls, found.mean, found.min, found.max) == (2, 2, None, None, None)


def test_batches_are_filtered_and_in_the_order_of_commitment(root: Path) -> None:
    store = filled(root)
    assert [batch.num_rows for batch in store.batches()] == [2, 2, 2, 2]
    assert [batch["group_id"].to_pylist() for batch in store.batches(round_=2)] == [["2-a", "2-b"]]
    assert [batch["group_id"].to_pylist() for batch in store.batches(version=1, columns=["group_id"])] == [
        ["1-a", "1-b"]
    ]
    wanted = store.batches(group_ids=["3-b", "0-a", "unknown"])
    assert [batch["group_id"].to_pylist() for batch in wanted] == [["0-a"], ["3-b"]]


@pytest.mark.parametrize("stage", ["parts", "index", "compacted", "removed"])
def test_the_same_rows_whichever_files_hold_them(root: Path, stage: str) -> None:
    expected = everything(filled(root))
    if stage == "index":
        with_index(root)
    elif stage != "parts":
        compacted(root, grace=0.0 if stage == "removed" else None)
    reader = SampleStore(root, None, read_only=True)
    assert everything(reader) == expected
    assert verify(root).problems == []
    assert len(names(root, "groups")) == {"compacted": 5, "removed": 1}.get(stage, 4)


def test_compaction_keeps_the_replaced_parts_for_the_grace_time(root: Path) -> None:
    filled(root)
    compacted(root, grace=3600.0)
    assert len(names(root, "groups")) == 5
    with mock.patch("time.time", lambda: time.time_ns() / 1e9 - 7200):  # a clock that was set back
        compacted(root, grace=3600.0)
        assert len(names(root, "groups")) == 5
    compacted(root, grace=0.0)
    assert len(names(root, "groups")) == 1


def test_parts_stay_while_what_replaces_them_is_damaged(root: Path) -> None:
    expected = everything(filled(root))
    store = OpenedStore(root, None, read_only=False)
    catalogue = store.kinds["groups"]
    compact(store.backend, catalogue, store.author, LARGE)
    (part,) = (root / "groups").glob("compact-*")
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    assert remove_superseded(store.backend, catalogue, grace=0.0) == []
    assert len(names(root, "groups")) == 5
    assert everything(SampleStore(root, None, read_only=True)) == expected


def test_a_reader_whose_parts_are_compacted_away_reads_on_and_sees_nothing_new(root: Path) -> None:
    writer = filled(root)
    reader = SampleStore(root, None, read_only=True)
    before = everything(reader)
    fresh = SampleStore(root, None, read_only=True)
    with writer.training():
        writer.append_step(step(9, ["0-a"]))
    compacted(root, grace=0.0)
    assert everything(reader) == before
    assert everything(fresh) == before  # this one had not read a part yet
    fresh.refresh()
    assert fresh.counts()["steps"] == 5 and len(fresh.steps()) == 5
    assert writer.append_groups(groups("0-a", "new")) == 1
    assert writer.groups(["0-b", "new"])["group_id"].to_pylist() == ["0-b", "new"]


def test_appending_goes_on_over_many_index_files_and_compactions(root: Path) -> None:
    store = SampleStore(root, "run")
    with store.training():
        for number in range(600):
            store.append_step(step(number, [f"g{number}"]))
    assert len(names(root, "index")) < 8
    assert any(name.startswith("compact") for name in names(root, "steps"))
    reopened = SampleStore(root, None, read_only=True)
    assert [row["step"] for row in reopened.steps()] == list(range(600))
    assert reopened.step_groups(257) == store.step_groups(257) == ["g257"]


def test_what_is_committed_is_acknowledged_although_compaction_fails(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SampleStore(root, "run")
    failing = mock.patch.object(opened_store, "compact", side_effect=DamagedPartError("a part is damaged"))
    with store.training(), failing:
        for number in range(SMALL.fewest):
            assert store.append_step(step(number, [f"g{number}"])) == 1
    assert "were written, but index or compaction failed: a part is damaged" in caplog.text
    failing = mock.patch.object(Catalogue, "write_index", side_effect=OSError(28, "No space left on device"))
    with store.training(), failing:
        assert store.append_step(step(999, ["z"])) == 1
    assert SampleStore(root, None, read_only=True).counts()["steps"] == SMALL.fewest + 1


@pytest.mark.parametrize("moment", ["before", "while it reads"])
def test_compaction_does_not_write_again_what_gc_has_removed(root: Path, moment: str) -> None:
    filled(root)
    store = OpenedStore(root, None, read_only=False)
    catalogue = store.kinds["groups"]
    list(catalogue.batches())  # in memory from now on

    def gc(*_: object) -> object:
        other = OpenedStore(root, None, read_only=False)
        remove(other, plan_removal(other, Criterion(below_version=2)))
        return mock.DEFAULT

    if moment == "before":
        gc()
        compact(store.backend, catalogue, store.author, LARGE)
    else:
        with mock.patch.object(compaction, "encode_part", side_effect=gc, wraps=compaction.encode_part):
            compact(store.backend, catalogue, store.author, LARGE)
    assert list(SampleStore(root, None, read_only=True).group_ids) == ["2-a", "2-b", "3-a", "3-b"]


def test_an_index_speaks_of_no_compacted_part_whose_rows_it_has_not(root: Path) -> None:
    first = OpenedStore(root, "run", read_only=False)
    for names_ in (["a"], ["b"]):
        first.append("groups", groups(*names_))
    second = SampleStore(root, "run")
    second.append_groups(groups("c"))
    compacted(root, grace=0.0)
    for index in (root / "index").iterdir():
        index.unlink()  # the index is never needed
    first.kinds["groups"].files_there()
    first.kinds["groups"].write_index(at_least=1)
    assert list(SampleStore(root, None, read_only=True).group_ids) == ["a", "b", "c"]


def test_messages_show_no_keys_of_a_uri() -> None:
    for uri in ("s4://KEY:SECRET@bucket/x?secret=SECRET", "s3://KEY:SEC/RET@bucket/x", "s3://KEY:SEC?RET@bucket/x"):
        with pytest.raises(UserError, match="bucket/x cannot hold a sample store") as caught:
            open_object_store(uri)
        assert not any(secret in str(caught.value) for secret in ("KEY", "SEC", "RET"))
    backend = ObjectStore("s3://KEY:SECRET@bucket/x@y/?secret=SECRET", fs.LocalFileSystem(), "bucket/x@y")
    assert backend.uri == "s3://bucket/x@y"


def test_two_writers_need_no_lock_and_all_readers_agree_on_duplicates(root: Path) -> None:
    first, second = SampleStore(root, "run"), SampleStore(root, "run")
    first.append_groups(groups("a", "b", prompt_text="first"))
    second.append_groups(groups("b", "c", prompt_text="second"))
    assert len(names(root, "groups")) == 2
    readers = [SampleStore(root, None, read_only=True) for _ in range(2)]
    assert readers[0].counts()["groups"] == 3
    first.refresh()
    texts = first.groups(["a", "b", "c"])["prompt_text"].to_pylist()
    assert all(reader.groups(["a", "b", "c"])["prompt_text"].to_pylist() == texts for reader in readers)
    assert sorted(row for batch in readers[0].batches() for row in batch["group_id"].to_pylist()) == ["a", "b", "c"]
    compacted(root, grace=0.0)
    assert SampleStore(root, None, read_only=True).groups(["a", "b", "c"])["prompt_text"].to_pylist() == texts
    found = verify(root)
    assert found.problems == [] and "1 rows repeat the key of another, 1 of them" in found.notes[0]
    third = SampleStore(root, "run")
    third.append_groups(groups("d"))
    assert names(root, "groups")[0].startswith("00000001-")  # one more than any that it had seen


def test_a_row_twice_in_one_batch_is_committed_once(root: Path) -> None:
    store = SampleStore(root, "run")
    assert store.append_groups(groups("a", "a", "b")) == 2
    assert list(store.group_ids) == ["a", "b"]


def test_a_replaced_part_that_comes_back_damaged_is_named_and_costs_nothing(root: Path) -> None:
    store = SampleStore(root, "run")
    for name in ("a", "b"):
        store.append_groups(groups(name))
    part = root / "groups" / names(root, "groups")[0]
    content = part.read_bytes()
    compacted(root, grace=0.0)
    part.write_bytes(content[:-20] + b"?" + content[-19:])
    assert any(part.name in sentence for sentence in verify(root).problems)
    assert SampleStore(root, "run").groups(["a", "b"]).num_rows == 2


@pytest.mark.parametrize(("version", "advice"), [(2, "start a new store"), (4, "upgrade brain-align")])
def test_a_store_or_part_of_another_version_is_refused_and_left_alone(root: Path, version: int, advice: str) -> None:
    filled(root)
    with mock.patch("brain_align.common.store.format.part_files.SCHEMA_VERSION", version):
        content = encode_part("groups", groups("z"), "host:1", "run")
    part = root / "groups" / plain_file(commit_name(9, "0000abcd", checksum(content)))
    part.write_bytes(content)
    with pytest.raises(UserError, match=rf"{part.name} has format version {version}, .*{advice}"):
        SampleStore(root, "run")
    assert part.exists()
    part.unlink()
    with mock.patch.object(manifest, "SCHEMA_VERSION", version):
        manifest.write_manifest(OpenedStore(root, None, read_only=True).backend, "run")
    before = (root / "store.json").read_bytes()
    for read_only in (True, False):
        with pytest.raises(UserError, match=rf"{root} has format version {version}, .*{advice}"):
            SampleStore(root, None, read_only=read_only)
    assert (root / "store.json").read_bytes() == before


def test_a_foreign_arrow_file_is_named_and_set_aside(root: Path) -> None:
    filled(root)
    table = pa.table({"x": [1]})
    for name in ("mine.arrow", plain_file(commit_name(7, "0000abcd", "0" * 32))):
        with pa.ipc.new_file(root / "groups" / name, table.schema) as file:
            file.write_table(table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    disguised = plain_file(commit_name(8, "0000abcd", checksum(sink.getvalue())))
    (root / "groups" / disguised).write_bytes(sink.getvalue())
    reader = SampleStore(root, None, read_only=True)
    assert len(reader.damaged) == 3 and reader.counts()["groups"] == 8
    assert any("does not hold groups rows" in sentence for sentence in reader.damaged)
    store = SampleStore(root, "run")
    assert len(store.damaged) == 3 and len(names(root, "damaged")) == 3
    assert store.counts()["groups"] == 8


def test_a_bit_that_flips_after_indexing_is_found_before_its_rows_are_given_out(root: Path) -> None:
    filled(root)
    with_index(root)
    part = sorted((root / "groups").iterdir())[1]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    reader = SampleStore(root, None, read_only=True)
    assert reader.damaged == [] and reader.groups(["0-a"]).num_rows == 1
    with pytest.raises(DamagedPartError, match=part.name):
        reader.groups(["1-b"])
    writer = SampleStore(root, "run")
    with pytest.raises(DamagedPartError, match="restart the run to produce its rows again"):
        list(writer.batches())
    assert names(root, "damaged") == [f"groups-{part.name}"]
    assert list(SampleStore(root, "run").group_ids) == ["0-a", "0-b", "2-a", "2-b", "3-a", "3-b"]


def test_a_part_of_another_size_than_the_index_states_is_named_when_the_store_is_opened(root: Path) -> None:
    filled(root)
    with_index(root)
    part = sorted((root / "groups").iterdir())[1]
    part.write_bytes(part.read_bytes()[:-1])
    reader = SampleStore(root, None, read_only=True)
    assert len(reader.damaged) == 1 and part.name in reader.damaged[0]
    assert not reader.has_group("1-a") and reader.counts()["groups"] == 6


def test_what_a_part_held_that_turned_out_damaged_is_missing_at_once_and_can_be_written_again(root: Path) -> None:
    filled(root)
    with_index(root)
    part = sorted((root / "groups").iterdir())[1]
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    store = SampleStore(root, "run")
    assert store.has_group("1-a")  # the size is right, and nobody has read it
    with pytest.raises(DamagedPartError, match=part.name):
        store.groups(["1-a"])
    assert not store.has_group("1-a") and store.counts()["groups"] == 6
    assert store.unscored("reward") == ["3-b"]
    assert store.append_groups(groups("1-a", "0-a")) == 1
    assert store.groups(["1-a"]).num_rows == 1


def test_new_directories_are_synced_into_those_above_them(root: Path) -> None:
    synced: list[Path] = []
    with mock.patch("brain_align.common.durable.fsync_path", side_effect=synced.append):
        store = SampleStore(root / "deep" / "store", "run")
        assert {root.parent, root, root / "deep"} <= set(synced)
        synced.clear()
        store.append_groups(groups("a"))
        assert {root / "deep" / "store", root / "deep" / "store" / "groups"} == set(synced)
        synced.clear()
        with new_directory(root / "models" / "1" / "adapter"):
            pass
    assert {root, root / "models"} <= set(synced)


def test_an_unfinished_file_that_vanishes_meanwhile_is_no_obstacle(root: Path) -> None:
    filled(root)
    (root / "groups" / ".tmp-new-12345678").symlink_to(root / "gone")  # listed, but not there
    assert SampleStore(root, "run").counts()["groups"] == 8


def test_what_a_lost_part_held_stays_lost_while_others_are_appended(root: Path) -> None:
    filled(root)
    with_index(root)
    sorted((root / "groups").iterdir())[0].unlink()
    store = SampleStore(root, "run")
    assert not store.has_group("0-a") and store.counts()["groups"] == 6
    names_ = [f"g{number}" for number in range(3000)]  # enough to have the hash table made again
    for first in range(0, 3000, 500):
        store.append_groups(groups(*names_[first : first + 500]))
    assert not store.has_group("0-a") and store.counts()["groups"] == 3006
    assert store.append_groups(groups("0-a")) == 1 and store.groups(["0-a"]).num_rows == 1
    assert SampleStore(root, None, read_only=True).counts()["groups"] == 3007


def test_a_damaged_compacted_part_costs_nothing_while_its_parts_are_there(root: Path) -> None:
    expected = everything(filled(root))
    compacted(root)
    for kind in ("groups", "scores", "steps"):
        (part,) = (root / kind).glob("compact-*")
        part.write_bytes(part.read_bytes()[:-9] + b"123456789")
    assert everything(SampleStore(root, None, read_only=True)) == expected
    assert len(repair(root)) == 3
    assert everything(SampleStore(root, "run")) == expected


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"run_id": "run"}', b'{"run_id": "run", "schema_version": "x"}']
)
def test_a_damaged_store_json_is_named_and_repaired(root: Path, content: bytes) -> None:
    filled(root)
    (root / "store.json").write_bytes(content)
    with pytest.raises(UserError, match=r"store\.json cannot be read .*brain store repair"):
        SampleStore(root, "run")
    assert "rebuilt from the parts" in repair(root)[0]
    assert SampleStore(root, "run").counts()["groups"] == 8


def test_parts_without_store_json_are_no_new_store_and_can_be_repaired(root: Path) -> None:
    filled(root)
    (root / "store.json").unlink()
    for read_only in (True, False):
        with pytest.raises(UserError, match=r"parts but no store\.json; `brain store repair"):
            SampleStore(root, "another", read_only=read_only)
    assert not (root / "store.json").exists()
    assert "was missing; it was rebuilt" in repair(locate(str(root)).uri)[0]
    assert SampleStore(root, "run").counts()["groups"] == 8


def test_repair_never_leaves_a_store_without_store_json(root: Path) -> None:
    filled(root)
    (root / "store.json").write_text("{")
    with mock.patch.object(LocalBackend, "move", side_effect=AssertionError("moved away")):
        repair(root)
    assert (root / "damaged" / "store.json").read_text() == "{"
    assert SampleStore(root, "run").counts()["groups"] == 8


def test_a_part_of_another_run_is_named_and_not_taken_for_rows_of_this_one(root: Path, tmp_path: Path) -> None:
    filled(root)
    SampleStore(tmp_path / "other", "other").append_groups(groups("theirs"))
    (part,) = (tmp_path / "other" / "groups").iterdir()
    shutil.copy(part, root / "groups" / part.name)
    sentence = "belongs to run other, and the store to run run"
    assert [sentence in problem for problem in verify(root).problems] == [True]
    reader = SampleStore(root, None, read_only=True)
    assert not reader.has_group("theirs") and sentence in reader.damaged[0]
    assert sentence in SampleStore(root, "run").damaged[0]
    assert names(root, "damaged") == [f"groups-{part.name}"]


@pytest.mark.parametrize("meanwhile", ["append", "compact"])
def test_verify_finds_no_damage_in_what_others_do_meanwhile(root: Path, meanwhile: str) -> None:
    writer = filled(root)
    with_index(root)

    def opened(*arguments: Any, **options: Any) -> OpenedStore:
        found = OpenedStore(*arguments, **options)
        if options.get("use_index") is False:  # the first of the two: the second sees more
            if meanwhile == "append":
                writer.append_groups(groups("0-a-", "late"))
                with_index(root)
            else:
                compacted(root, grace=0.0)
        return found

    with mock.patch.object(verification, "OpenedStore", opened):
        assert verify(root).problems == []


def test_a_damaged_list_of_removed_groups_is_named(root: Path) -> None:
    filled(root)
    store = OpenedStore(root, None, read_only=False)
    remove(store, plan_removal(store, Criterion(below_version=2)))
    (removed,) = (root / "removed").iterdir()
    removed.write_bytes(removed.read_bytes()[:-1] + b"?")
    problems = verify(root).problems
    assert any(f"{removed} is damaged" in problem for problem in problems)


def test_verify_names_what_does_not_belong_together(root: Path) -> None:
    store = filled(root)
    store.append_scores(scores("reward", {"lost": [1.0, 2.0], "3-b": [1.0]}))
    store.append_scores(scores("other", {"0-a": [float("nan"), 1.0]}))
    with store.training():
        store.append_step(step(77, ["gone"]))
    found = verify(root)
    text = "\n".join(found.problems)
    assert "1 scores do not have one value per output of their group (reward of 3-b)" in text
    assert "1 scores have values that are NaN or infinite, where null belongs (other of 0-a)" in text
    assert "scores: 1 groups that they refer to are not in the store (lost)" in text
    assert "steps: 1 groups that they refer to are not in the store (gone)" in text
    assert len(found.problems) == 4


def test_an_index_that_disagrees_with_the_parts_is_found_and_made_again(root: Path, tmp_path: Path) -> None:
    filled(root)
    with_index(root)
    other = tmp_path / "other"
    shutil.copytree(root, other)
    shutil.rmtree(other / "scores")
    shutil.rmtree(other / "index")
    store = SampleStore(other, "run")
    store.append_scores(scores("reward", {"0-a": [5.0, 5.0]}))
    (part,) = (other / "scores").iterdir()
    index = next(path for path in (root / "index").iterdir() if path.name.startswith("scores"))
    index.unlink()
    shutil.copy(part, root / "scores" / part.name)
    with_index(root)
    assert verify(root).problems == []
    index = next(path for path in (root / "index").iterdir() if path.name.startswith("scores"))
    table = pa.ipc.open_file(index).read_all()
    table = table.set_column(4, table.schema.field(4), pa.array([9] * len(table), pa.int32()))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    index.unlink()
    (root / "index" / f"scores-{checksum(sink.getvalue())}.arrow").write_bytes(sink.getvalue())
    assert any("index files of the scores do not match" in problem for problem in verify(root).problems)
    repair(root)
    assert verify(root).problems == []


def test_gc_removes_old_versions_and_nothing_that_is_needed(root: Path) -> None:
    filled(root, leases=5)
    SampleStore(root, "run").append_groups(groups("untrained", proposal_version=0))
    compacted(root, grace=0.0)
    store = OpenedStore(root, None, read_only=False)
    plan = plan_removal(store, Criterion(below_version=2))
    assert plan.group_ids == ["0-a", "0-b", "1-a", "1-b"] and plan.kept_untrained == 1
    assert len(plan.commits["groups"]) == len(plan.commits["scores"]) == 2
    assert len(names(root, "groups")) == 1  # nothing was done yet
    remove(store, plan)
    left = SampleStore(root, "run")
    assert list(left.group_ids) == ["2-a", "2-b", "3-a", "3-b", "4-a", "4-b", "untrained"]
    assert left.has_score("2-a", "reward") and not left.has_score("1-a", "reward")
    found = verify(root)
    assert found.problems == [] and found.notes == ["steps refer to 4 groups that `brain store gc` removed."]
    assert plan_removal(OpenedStore(root, None, read_only=False), Criterion(below_version=9)).group_ids == [
        "2-a",
        "2-b",
        "3-a",
        "3-b",
    ]
    assert "untrained" in plan_removal(store, Criterion(older_than=1.0, untrained=True)).group_ids


def test_gc_keeps_the_newest_trained_round_and_all_later_ones(root: Path) -> None:
    filled(root, leases=3)
    store = SampleStore(root, "run")
    store.append_groups(groups("2-c", round=2, proposal_version=2))  # for the next pass over the round
    store.append_groups(groups("3-a", round=3, proposal_version=2))  # sampled ahead, while round 2 trains
    reader = OpenedStore(root, None, read_only=True)
    assert plan_removal(reader, Criterion(below_version=9)).group_ids == ["0-a", "0-b", "1-a", "1-b"]
    assert plan_removal(reader, Criterion(below_version=9, untrained=True)).group_ids == ["0-a", "0-b", "1-a", "1-b"]


def test_gc_takes_nothing_of_a_run_that_has_trained_nothing(root: Path) -> None:
    SampleStore(root, "run").append_groups(groups("a", round=0, proposal_version=0))
    reader = OpenedStore(root, None, read_only=True)
    assert plan_removal(reader, Criterion(below_version=9, untrained=True)).group_ids == []


def test_gc_by_age_spares_groups_that_a_clock_dated_into_the_future(root: Path) -> None:
    store = SampleStore(root, "run")
    for lease, finished in enumerate((1.0, time.time() + 1e6, time.time() + 1e6)):
        store.append_groups(groups(f"{lease}", round=lease, finished_at=finished))
        with store.training():
            store.append_step(step(lease, [f"{lease}"], round=lease))
    assert plan_removal(OpenedStore(root, None, read_only=False), Criterion(older_than=3600.0)).group_ids == ["0"]


def test_the_order_of_commitment_does_not_follow_the_clock(root: Path) -> None:
    store = SampleStore(root, "run")
    for number in range(5):
        store.append_groups(groups(f"{number}", finished_at=1e9 - number))
    assert list(SampleStore(root, None, read_only=True).group_ids) == ["0", "1", "2", "3", "4"]


def test_other_runs_and_missing_stores(root: Path) -> None:
    filled(root)
    with pytest.raises(UserError, match="belongs to run run, not to other"):
        SampleStore(root, "other", read_only=True)
    with pytest.raises(UserError, match="There is no sample store at"):
        SampleStore(root / "nowhere", None, read_only=True)
    with pytest.raises(UserError, match="There is no sample store at"):
        OpenedStore(root / "nowhere", None, read_only=False)
    assert SampleStore(root, None).append_groups(groups("z")) == 1  # whichever run it belongs to
    with pytest.raises(UserError, match="There is no sample store at"):
        SampleStore(root / "nowhere", None)
    assert not (root / "nowhere").exists()


def test_a_read_only_or_full_disk_is_a_clear_error(root: Path) -> None:
    store = filled(root)
    with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
        with pytest.raises(UserError, match=r"cannot be written: No space left on device. No acknowledged row is lost"):
            store.append_groups(groups("z"))
        with pytest.raises(UserError, match="cannot be opened: No space left on device"):
            SampleStore(root / "new", "run")
    assert store.append_groups(groups("z")) == 1
    with pytest.raises(ValueError, match="read-only"):
        SampleStore(root, None, read_only=True).append_groups(groups("y"))


def test_names_of_parts() -> None:
    digest = f"xxh128-{'0123456789abcdef' * 2}"
    assert is_part(f"00000001-89abcdef-{digest}.arrow") and is_part(f"compact-00000001-89abcdef-{digest}.arrow")
    for other in (f"1-89abcdef-{digest}.arrow", f"00000001-{digest}.arrow", f"00000001-89abcdef-{digest}.parquet"):
        assert not is_part(other) and not is_part(f".tmp-{other}")
    with pytest.raises(UserError, match="start another"):
        commit_name(10**8, "89abcdef", digest)


@pytest.mark.parametrize(
    ("uri", "as_shown"),
    [
        ("runs/a@b:c", "runs/a@b:c"),
        ("s3://bucket/a@b/store?endpoint_override=host", "s3://bucket/a@b/store"),
        ("s3://key:secret@bucket/a@b/", "s3://bucket/a@b"),
        ("s3://key:sec/r?et@bucket/store", "s3://bucket/store"),
    ],
)
def test_messages_name_a_store_without_its_keys(uri: str, as_shown: str) -> None:
    assert shown(uri) == as_shown
