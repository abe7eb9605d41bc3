import errno
import os
import tempfile
from pathlib import Path

import pytest

from brain_align.common import policies
from brain_align.common.errors import UserError
from brain_align.common.policies import PolicyRegistry
from tests.unit.factories import PROBE


def weights(content: str):
    return lambda directory: (directory / "adapter_model.safetensors").write_text(content)


def test_versions_appear_whole_and_are_never_changed(tmp_path: Path) -> None:
    registry = PolicyRegistry(tmp_path / "policies")
    assert registry.newest() is None
    first = registry.publish(0, 0, weights("a"), PROBE)
    assert registry.publish(0, 0, weights("other"), PROBE) == first
    assert (first.path / "adapter_model.safetensors").read_text() == "a"
    second = registry.publish(1, 40, weights("b"), PROBE)
    assert second.digest != first.digest
    assert registry.newest() == second and registry.versions() == [0, 1]
    assert registry.verify(1) == second


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    registry = PolicyRegistry(tmp_path)

    def fails(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        registry.publish(0, 0, fails, PROBE)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found_and_missing_versions_are_named(tmp_path: Path) -> None:
    registry = PolicyRegistry(tmp_path)
    found = registry.publish(3, 0, weights("a"), PROBE)
    (found.path / "adapter_model.safetensors").write_text("tampered")
    with pytest.raises(UserError, match=r"version 3 .* is damaged"):
        registry.verify(3)
    with pytest.raises(UserError, match=r"version 4 .* is not complete"):
        registry.get(4)


def test_a_version_says_where_it_is_served(tmp_path: Path) -> None:
    registry = PolicyRegistry(tmp_path)
    assert registry.publish(0, 0, weights("a"), PROBE, server="10.0.0.1:7000").server == "10.0.0.1:7000"
    assert registry.publish(1, 0, weights("a"), PROBE).server is None
    assert registry.verify(1).files == ("adapter_model.safetensors",)


# -- a version that others cannot read, or cannot see


def published(root: Path) -> PolicyRegistry:
    registry = PolicyRegistry(root / "run/policies")
    registry.publish(0, 0, weights("a"), PROBE)
    return registry


@pytest.mark.parametrize("place", ["version.json", "adapter_model.safetensors", ".", ".."])
def test_a_file_that_this_user_may_not_read_is_not_called_damaged(tmp_path, another_user, place) -> None:
    registry = published(tmp_path)
    (registry.path(0) / place).chmod(0)
    with another_user(), pytest.raises(UserError, match=r"may not read .*; give that user read access") as refused:
        registry.verify(0)
    assert "restore" not in str(refused.value) and "on node" in str(refused.value)
    if place == "..":
        with another_user(), pytest.raises(UserError, match="may not read"):
            registry.versions()


def test_a_node_without_the_run_directory_is_told_so(tmp_path) -> None:
    registry = published(tmp_path)
    (tmp_path / "run").rename(tmp_path / "elsewhere")  # as where nothing is mounted
    with pytest.raises(UserError, match=r"node \S+ does not see .*/run/policies; mount") as refused:
        registry.verify(0)
    assert "restore" not in str(refused.value)


def test_a_failing_file_server_is_named(tmp_path, monkeypatch) -> None:
    registry = published(tmp_path)

    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle", "policies/v000000")

    monkeypatch.setattr(policies, "digest_files", stale)
    with pytest.raises(UserError, match=r"cannot be read on node .*Stale file handle.*check the disk"):
        registry.verify(0)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_that_libraries_write_get_the_mode_of_the_umask(tmp_path, mask, mode) -> None:
    def write(directory: Path) -> None:
        descriptor, name = tempfile.mkstemp(dir=directory)  # 0600
        os.close(descriptor)
        Path(name).rename(directory / "adapter_model.safetensors")
        (directory / "shards").mkdir()
        (directory / "shards/one").touch(0o600)

    before = os.umask(mask)
    try:
        version = PolicyRegistry(tmp_path).publish(0, 0, write, PROBE)
    finally:
        os.umask(before)
    assert {file: (version.path / file).stat().st_mode & 0o777 for file in version.files} == dict.fromkeys(
        ("adapter_model.safetensors", "shards/one"), mode
    )
    assert (version.path / "version.json").stat().st_mode & 0o777 == mode
    assert sorted(path.name for path in version.path.iterdir()) == [
        "adapter_model.safetensors",
        "shards",
        "version.json",
    ]
