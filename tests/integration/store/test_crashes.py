"""Killed writers, failing disks, damaged parts: nothing acknowledged is lost, and nothing bad is returned."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brain_align.common.errors import UserError
from brain_align.common.store.maintenance.repair import repair
from brain_align.common.store.maintenance.verification import verify
from brain_align.common.store.sample_store import SampleStore
from tests.integration.store.store_faults import (
    ERRORS,
    Faults,
    append_lease,
    bad_rows,
    busy_housekeeping,
    fail_with,
    snapshot,
)
from tests.locations import ROOT, memory_directory

MOMENTS = 90  # operations on files: an opening, and about four leases with index files, compaction and removal
BY_CLOCK = 30
FAILURES = 150


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place where syncing costs nothing, if there is one: a power cut cannot be tested here anyway."""
    with memory_directory(tmp_path_factory.mktemp("disk")) as directory:
        yield directory


def report(faults: int, lost: int, bad: int, what: str) -> None:
    print(f"\n{what}: {faults} faults injected, acknowledged rows lost {lost}, bad data returned {bad}")
    assert lost == 0 and bad == 0


class Acknowledged:
    """What writers were told is safe."""

    def __init__(self) -> None:
        self.rows: dict[str, set[str]] = {"group": set(), "score": set(), "step": set()}

    def __call__(self, text: str) -> None:
        kind, *names = text.split()
        self.rows[kind].update(names)

    def lost(self, store: SampleStore) -> list[str]:
        steps = {str(row["step"]) for row in store.steps()}
        lost = [name for name in sorted(self.rows["group"]) if not store.has_group(name)]
        lost += [name for name in sorted(self.rows["score"]) if not store.has_score(name, "reward")]
        return lost + sorted(self.rows["step"] - steps)


@pytest.fixture
def forks() -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.store.store_faults"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    yield process
    process.kill()
    process.wait(10)


@pytest.mark.timeout(400)
def test_writers_killed_at_every_moment_lose_nothing_acknowledged(disk: Path, forks: "subprocess.Popen[str]") -> None:
    """Kill one writer before each of its first operations, and some by the clock, all on one store.

    On disk, "before operation k" is "after operation k-1", with everything acknowledged that ever is in between, so
    these kills meet every state that the operations leave (a write dies in its middle), each once. Drawing 150 of the
    180 moments at random, before and after, left out two in five of them. The clock adds the moments between.
    """
    chance, root = random.Random(0), disk / "killed"
    acknowledged, bad = Acknowledged(), 0
    moments: list[int | None] = [*range(1, MOMENTS + 1), *[None] * BY_CLOCK]
    chance.shuffle(moments)  # a store has another history at each of them
    assert forks.stdin and forks.stdout
    for run, moment in enumerate(moments, start=1):
        forks.stdin.write(f"{root} {run} {moment or 10**9} before\n")
        forks.stdin.flush()
        for line in forks.stdout:
            if line == "dead\n":
                break
            if not line.startswith("pid"):
                acknowledged(line)
            elif moment is None:
                time.sleep(chance.uniform(0, 0.06))
                os.kill(int(line.split()[1]), signal.SIGKILL)
        if run % 25 == 0:
            store = SampleStore(root, None, read_only=True)
            assert store.damaged == []
            bad += len(bad_rows(snapshot(store)))
    store = SampleStore(root, None, read_only=True)
    assert len(acknowledged.rows["group"]) > 2 * len(moments)
    assert verify(root).problems == []
    report(len(moments), len(acknowledged.lost(store)), bad + len(bad_rows(snapshot(store))), "SIGKILL")


@pytest.mark.timeout(400)
def test_a_file_system_that_fails_or_fills_loses_nothing_acknowledged(disk: Path) -> None:
    chance, root = random.Random(1), disk / "failing"
    acknowledged, bad, injected, refused = Acknowledged(), 0, 0, 0
    for run in range(FAILURES):
        faults = Faults(chance.randint(1, 90), chance.choice(["before", "after"]), fail_with(chance.choice(ERRORS)))
        with busy_housekeeping(), faults.at_work():
            try:
                store = SampleStore(root, "run")
                with store.training():
                    for lease in range(100):
                        append_lease(store, f"f{run}-{lease}", run * 1000 + lease, acknowledged)
                        if faults.count > 90:
                            break  # the fault was in the housekeeping (index, compaction), which refuses nothing for it
            except UserError as error:
                assert re.search(r"cannot be (written|opened)", str(error))
                refused += 1
        injected += 1
        shutil.rmtree(root / "claims", ignore_errors=True)  # one that could not be removed lasts as long as its process
        if run % 25 == 24:
            bad += len(bad_rows(snapshot(SampleStore(root, None, read_only=True))))
    store = SampleStore(root, "run")
    assert store.damaged == [] and verify(root).problems == []
    assert FAILURES // 4 < refused < FAILURES
    report(injected, len(acknowledged.lost(store)), bad + len(bad_rows(snapshot(store))), "failing file system")


@pytest.fixture(scope="module")
def whole(disk: Path) -> Path:
    """A store with every kind of file: plain and compacted parts, some in the index and some not."""
    root = disk / "whole"
    with busy_housekeeping():
        store = SampleStore(root, "run")
        with store.training():
            for lease in range(8):
                append_lease(store, f"w{lease}", lease, lambda _: None)
    return root


def parts_of(root: Path) -> list[Path]:
    """Two compacted parts and two plain ones, of all kinds."""
    found = []
    for kind, compacted in (("groups", True), ("groups", False), ("scores", True), ("steps", False)):
        files = sorted((root / kind).iterdir())
        found.append([path for path in files if path.name.startswith("compact") == compacted][-1])
    return found


def places_in(part: Path) -> list[int]:
    """Every 1/50 of a part's length, and its last bytes: the footer, its length, and the magic."""
    size = part.stat().st_size
    return sorted({*range(0, size, -(-size // 50)), *range(size - 12, size)})


def damaged_copy(whole: Path, root: Path, part: Path, content: bytes) -> Path:
    """The store anew, with another content for one part; returns that part."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root, copy_function=os.link)
    damaged = root / part.relative_to(whole)
    damaged.unlink()
    damaged.write_bytes(content)
    return damaged


def lost_beside(root: Path, part: Path, complete: dict[str, Any]) -> int:
    """How many rows of the other kinds a store has lost."""
    store = SampleStore(root, None, read_only=True)
    has = {"groups": store.has_group, "scores": lambda name: store.has_score(name, "reward")}
    return sum(not has[kind](name) for kind in has.keys() - {part.parent.name} for name in complete[kind])


def bad_when_read(root: Path, part: Path) -> int:
    """How many bad rows a reader of a damaged store is given; the damage must be named."""
    store = SampleStore(root, None, read_only=True)
    bad = 0
    try:
        bad = len(bad_rows(snapshot(store)))
        named = store.damaged
    except UserError as error:
        named = [str(error)]
    assert any(part.name in sentence for sentence in named)
    return bad


@pytest.mark.timeout(400)
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_every_damage_is_named_and_nothing_bad_returned(whole: Path, disk: Path, damage: str) -> None:
    complete = snapshot(SampleStore(whole, None, read_only=True))
    faults, lost, bad, root = 0, 0, 0, disk / damage
    for part in parts_of(whole):
        for place in places_in(part):
            content = bytearray(part.read_bytes())
            if damage == "truncated":
                del content[place:]
            else:
                content[place] ^= 1 << (place % 8)
            damaged = damaged_copy(whole, root, part, bytes(content))
            bad += bad_when_read(root, damaged)
            if place % 5 == 0:
                assert any(part.name in problem for problem in verify(root).problems)
            assert any(part.name in sentence for sentence in repair(root))
            assert [path.name for path in (root / "damaged").iterdir()] == [f"{part.parent.name}-{part.name}"]
            bad += len(bad_rows(snapshot(SampleStore(root, None, read_only=True))))
            lost += lost_beside(root, part, complete)
            faults += 1
    report(faults, lost, bad, f"{damage} part")


@pytest.mark.timeout(400)
def test_a_damaged_index_costs_nothing_but_time(whole: Path, tmp_path: Path) -> None:
    complete = snapshot(SampleStore(whole, None, read_only=True))
    for number, file in enumerate(sorted((whole / "index").iterdir())):
        for place in (0, file.stat().st_size // 3, file.stat().st_size // 2, file.stat().st_size - 1):
            root = tmp_path / f"{number}-{place}"
            shutil.copytree(whole, root)
            content = bytearray(file.read_bytes())
            content[place] ^= 4
            (root / "index" / file.name).write_bytes(content)
            assert snapshot(SampleStore(root, None, read_only=True)) == complete
