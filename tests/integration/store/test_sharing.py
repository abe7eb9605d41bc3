"""Two writers and three readers of one store at once; BRAIN_STORE_LOAD_SECONDS sets for how long."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from brain_align.common.store.maintenance.verification import verify
from brain_align.common.store.sample_store import SampleStore
from tests.locations import ROOT

SECONDS = float(os.environ.get("BRAIN_STORE_LOAD_SECONDS", "12"))


def start(role: str, store: Path, name: str, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.integration.store.store_load", role, str(store), name, str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate(timeout=SECONDS + 60)
    assert process.returncode == 0, err[-2000:]
    return json.loads(out)


@pytest.mark.timeout(SECONDS * 2 + 120)
def test_readers_see_consistent_snapshots_while_two_writers_append(tmp_path: Path) -> None:
    root = tmp_path / "store"
    SampleStore(root, "run")
    processes = [start("write", root, f"writer{number}", SECONDS) for number in (0, 1)]
    readers = [start("read", root, f"reader{number}", SECONDS - 1) for number in range(3)]
    leases = [answer(process)["leases"] for process in processes]
    seen = [answer(process) for process in readers]
    print(f"\n{SECONDS:g} s: {leases} leases written, {[one['snapshots'] for one in seen]} snapshots read")
    assert [problem for one in seen for problem in one["problems"]] == []
    assert all(one["snapshots"] > 3 for one in seen)
    first, second = (SampleStore(root, None, read_only=True) for _ in range(2))
    assert list(first.group_ids) == list(second.group_ids)
    expected = {
        f"writer{number}-{lease}-{row}" for number in (0, 1) for lease in range(leases[number]) for row in range(3)
    }
    expected |= {f"shared-{lease}" for lease in range(max(leases))}
    assert set(first.group_ids) == expected
    assert first.counts()["steps"] == leases[0]
    assert verify(root).problems == []
