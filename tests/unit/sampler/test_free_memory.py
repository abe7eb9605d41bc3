"""What limits of machine and container leave, read from files as the kernel writes them."""

from pathlib import Path

import pytest

from brain_align.sampler.weights import free_memory as module
from brain_align.sampler.weights.free_memory import free_memory


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(module, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(module, "_HIERARCHY", tmp_path / "cgroup")
    (tmp_path / "meminfo").write_text("MemTotal:  100 kB\nMemAvailable:  8 kB\nHugePages_Total:  0\n")
    (tmp_path / "groups").write_text("0::/\n")
    return tmp_path


def write_group(place: Path, limit: str, usage: int, *, first: bool = False) -> None:
    place.mkdir(parents=True, exist_ok=True)
    prefix = "total_" if first else ""
    (place / ("memory.limit_in_bytes" if first else "memory.max")).write_text(f"{limit}\n")
    (place / ("memory.usage_in_bytes" if first else "memory.current")).write_text(f"{usage}\n")
    (place / "memory.stat").write_text(f"anon 7\n{prefix}inactive_file 100\n{prefix}active_file 20\n")


def test_without_a_container_it_is_what_the_machine_has(root: Path) -> None:
    assert free_memory() == 8192


def test_a_container_s_limit_counts_and_its_caches_do_not(root: Path) -> None:
    write_group(root / "cgroup", "5000", 4000)
    assert free_memory() == 1120
    write_group(root / "cgroup", "max", 4000)
    assert free_memory() == 8192


def test_the_narrowest_of_nested_groups_counts(root: Path) -> None:
    (root / "groups").write_text("0::/job/step\n")
    write_group(root / "cgroup/job/step", "6000", 100)
    write_group(root / "cgroup/job", "3000", 2900)
    assert free_memory() == 220


def test_a_path_from_outside_the_container_is_passed_over(root: Path) -> None:
    (root / "groups").write_text("0::/kubepods/pod7\n")
    write_group(root / "cgroup", "5000", 4000)
    assert free_memory() == 1120


def test_version_1_is_read_too(root: Path) -> None:
    (root / "groups").write_text("4:cpuset,memory:/docker/1\n0::/\n")
    write_group(root / "cgroup/memory", "9223372036854771712", 4000, first=True)
    write_group(root / "cgroup/memory/docker/1", "5000", 5000, first=True)
    assert free_memory() == 120
    write_group(root / "cgroup/memory/docker/1", "5000", 5500, first=True)
    assert free_memory() == 0
