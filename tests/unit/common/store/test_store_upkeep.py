"""What compaction, removal and verification read, and what they must not do to rows that went bad meanwhile."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pyarrow.dataset as ds
import pytest
from pyarrow import fs

from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.store import opened_store
from brain_align.common.store.files.backends import LocalBackend
from brain_align.common.store.files.object_store import ObjectStore
from brain_align.common.store.maintenance.verification import verify
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.table.compaction import LARGE, SMALL, compact, remove_superseded, rewrite_without
from brain_align.common.store.table.part_reader import PartReader
from tests.locations import memory_directory
from tests.unit.factories import groups, scores


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    with memory_directory(tmp_path) as directory:
        yield directory / "store"


def filled(root: Path) -> SampleStore:
    store = SampleStore(root, "run")
    for name in ("a", "b", "c"):
        store.append_groups(groups(name))
        store.append_scores(scores("reward", {name: [1.0, 2.0]}))
    return store


def compacted(root: Path) -> None:
    store = OpenedStore(root, None, read_only=False)
    for catalogue in store.kinds.values():
        compact(store.backend, catalogue, store.author, LARGE)


def with_one_bit_flipped(part: Path) -> None:
    """In place, as a disk does it: whoever has the file mapped sees it."""
    with part.open("r+b") as file:
        file.seek(part.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def test_compaction_gives_no_valid_checksum_to_rows_that_went_bad_since_they_were_read(root: Path) -> None:
    filled(root)
    store = OpenedStore(root, None, read_only=False)
    catalogue = store.kinds["scores"]
    bad = sorted((root / "scores").iterdir())[1]
    catalogue.read(bad.stem)  # checked, and mapped
    with_one_bit_flipped(bad)
    with pytest.raises(DamagedPartError, match=rf"{bad.name} is damaged"):
        compact(store.backend, catalogue, store.author, LARGE)
    assert remove_superseded(store.backend, catalogue, grace=0.0) == []
    assert [path.name for path in (root / "damaged").iterdir()] == [f"scores-{bad.name}"]
    assert SampleStore(root, None, read_only=True).unscored("reward") == ["b"]


def test_gc_gives_no_valid_checksum_to_rows_that_went_bad_since_they_were_read(root: Path) -> None:
    filled(root)
    compacted(root)
    store = OpenedStore(root, None, read_only=False)
    catalogue = store.kinds["scores"]
    remove_superseded(store.backend, catalogue, grace=0.0)
    (bad,) = (root / "scores").iterdir()
    first = catalogue.rows.commits[0]
    catalogue.read(first)
    with_one_bit_flipped(bad)
    with pytest.raises(DamagedPartError, match=rf"{bad.name} is damaged"):
        rewrite_without(store.backend, catalogue, store.author, {first})
    assert list((root / "scores").iterdir()) == []  # set aside, and nothing was written in its place


def test_what_another_has_compacted_is_read_once_however_often_one_looks(root: Path) -> None:
    store = filled(root)
    catalogue = store._opening.kinds["groups"]
    compacted(root)
    with mock.patch.object(PartReader, "part", autospec=True, side_effect=PartReader.part) as read:
        for _ in range(3):
            catalogue.files_there()
        assert read.call_count == 1
        catalogue.refresh()  # now its rows count, where any are new
        assert read.call_count == 2
        catalogue.refresh()
        catalogue.files_there()
        assert read.call_count == 2


def test_a_writer_fetches_nothing_of_what_it_has_written_itself(root: Path) -> None:
    for directory in ("scores", "index"):
        (root / directory).mkdir(parents=True)
    backend = ObjectStore("s3://bucket/store", fs.LocalFileSystem(), str(root))
    with mock.patch.object(opened_store, "open_backend", return_value=backend):
        store = SampleStore("s3://bucket/store", "run")
    with mock.patch.object(ObjectStore, "read_checked", side_effect=AssertionError("fetched")):
        for number in range(SMALL.fewest):
            store.append_scores(scores("reward", {f"g{number}": [float(number)]}))
    assert len(list((root / "scores").glob("compact-*"))) == 1
    assert store.scores(["g3"], "reward")["values"].to_pylist() == [[3.0]]


def test_the_files_for_other_tools_are_there_and_hold_what_the_opening_sees(root: Path) -> None:
    reader = SampleStore(filled(root).root, None, read_only=True)
    SampleStore(root, "run").append_groups(groups("d"))
    compacted(root)
    store = OpenedStore(root, None, read_only=False)
    remove_superseded(store.backend, store.kinds["groups"], grace=0.0)
    rows = ds.dataset(reader.part_files("groups"), format="ipc").to_table()
    assert rows["group_id"].to_pylist() == list(reader.group_ids) == ["a", "b", "c", "d"]


def test_verify_names_a_foreign_file_among_the_lists_of_removed_groups_and_goes_on(root: Path) -> None:
    filled(root)
    (root / "removed").mkdir()
    for name in ("notes.txt", "groups-.arrow"):
        (root / "removed" / name).write_text("")
    found = verify(root)
    assert found.problems == [
        f"{root}/removed/{name} is not a file of a sample store; move it elsewhere."
        for name in ("groups-.arrow", "notes.txt")
    ]
    assert found.counts["groups"] == 3


def test_a_place_that_cannot_be_read_is_a_clear_error_wherever_one_looks_again(root: Path) -> None:
    store = filled(root)
    away = mock.patch.object(LocalBackend, "list", side_effect=OSError(5, "Input/output error"))
    with away, pytest.raises(UserError, match=f"{root} cannot be read: Input/output error"):
        store.refresh()
    with away, pytest.raises(UserError, match=f"{root} cannot be read: Input/output error"):
        store.append_scores(scores("second", {"a": [1.0, 2.0]}))
