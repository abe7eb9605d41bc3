"""File systems that lack something: what they cannot do is left out, said once, and hides no real failure."""

import errno
import mmap
import os
import stat
from pathlib import Path
from unittest import mock

import pytest

from brain_align.common import durable
from brain_align.common.durable import new_directory, shortcomings, time_at, write_file
from brain_align.common.errors import TryAgainError
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.system.locks import file_lock
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.start import locked
from tests.unit.factories import groups, step


@pytest.fixture(autouse=True)
def nothing_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_shortcomings", {})


def write_everything(root: Path) -> None:
    write_file(root / "below" / "file", "text")
    with new_directory(root / "made") as made:
        (made / "inner").mkdir()
        (made / "inner" / "file").write_text("text")
    store = SampleStore(root / "store", "run")
    with store.training():
        store.append_groups(groups("a"))
        store.append_step(step(1, ["a"]))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_directories_that_cannot_be_flushed_are_no_failure(tmp_path: Path, number: int) -> None:
    fsync = os.fsync

    def refusing(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    with mock.patch("os.fsync", refusing):
        write_everything(tmp_path)
    assert (tmp_path / "below" / "file").read_text() == (tmp_path / "made" / "inner" / "file").read_text() == "text"
    said = shortcomings()
    assert (
        f"The file system of {tmp_path} cannot flush directories to the disk: what was written last may be" in said[0]
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_flush_that_fails_is_a_failure_that_names_the_file(tmp_path: Path, number: int) -> None:
    with mock.patch("os.fsync", side_effect=OSError(number, "why")), pytest.raises(OSError) as failed:
        write_file(tmp_path / "file", "text")
    assert failed.value.errno == number and str(tmp_path) in str(failed.value.filename)
    assert shortcomings() == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_without_them_and_that_is_said_once(tmp_path: Path, number: int) -> None:
    directory = RunDirectory(tmp_path / "run")
    without = mock.patch("fcntl.flock", side_effect=OSError(number, "none here"))
    with without, locked(directory), locked(directory), file_lock(tmp_path / "run" / "lock", wait=True) as held:
        assert not held
    (said,) = shortcomings()
    assert said.startswith(f"The file system of {tmp_path / 'run'} has no locks (none here): nothing keeps two")


def test_a_lock_keeps_others_out_until_it_ends(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    with locked(directory), pytest.raises(TryAgainError, match="Another process is running on"), locked(directory):
        pass
    with locked(directory), file_lock(tmp_path / "other") as held:
        assert held
    broken = mock.patch("fcntl.flock", side_effect=OSError(errno.EIO, "broken"))
    with broken, pytest.raises(OSError, match="broken"), file_lock(tmp_path / "other"):
        pass


def test_a_file_system_that_maps_no_files_is_read(tmp_path: Path) -> None:
    write_everything(tmp_path)

    class Unmappable(mmap.mmap):
        def __new__(cls, *_args: object, **_options: object) -> "Unmappable":
            raise OSError(errno.ENODEV, "No such device")

    with mock.patch.object(mmap, "mmap", Unmappable):
        store = SampleStore(tmp_path / "store", None, read_only=True)
        assert store.step_groups(1) == ["a"]


def test_the_time_is_that_of_the_place(tmp_path: Path) -> None:
    with mock.patch("time.time", return_value=0.0):
        assert time_at(tmp_path) > 1e9
    assert list(tmp_path.iterdir()) == []
