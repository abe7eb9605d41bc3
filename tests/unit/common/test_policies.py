from pathlib import Path

import pytest

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
