"""A store of a million groups, as a run leaves it, and how it is opened, in a process of its own.

python -m tests.bench.store_cases.million ROOT      prints one line of JSON
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.table.compaction import remove_superseded
from tests.bench.store_cases import rows

RUN = "million"
LEASE = 64
N, TOKENS = 4, 4  # small outputs, or a million groups would not fit on the disk; opening reads none of them
SCORERS = ("reward", "prior")
STEP_GROUPS = 64


def build(root: Path, groups: int) -> None:
    """Append leases, their scores, and a step for each, as a run does; but nothing waits for the disk."""
    at_once = functools.partial(remove_superseded, grace=0.0)
    store = SampleStore(root, RUN)
    with (
        mock.patch("os.fsync"),
        mock.patch("brain_align.common.store.opened_store.remove_superseded", at_once),
        store.training(),
    ):
        for number, first in enumerate(range(0, groups, LEASE), start=1):
            names = rows.ids(first, min(LEASE, groups - first))
            store.append_groups(rows.groups(names, N, TOKENS, number // 25))
            for scorer in SCORERS:
                store.append_scores(rows.scores(names, scorer, N))
            store.append_step(_step(number, names[:STEP_GROUPS]))


def _step(number: int, names: list[str]) -> dict[str, Any]:
    metrics = {f"metric_{index}": float(index) for index in range(12)}
    return {
        "step": number,
        "round": number // 25,
        "group_ids": names,
        "published_version": None,
        "metrics": metrics,
        "finished_at": 1.0,
    }


def opened(root: Path) -> dict[str, float]:
    """Open the store to read, and ask for what a scorer has not seen."""
    store, seconds = timed(lambda: SampleStore(root, None, read_only=True))
    resident = resident_mb()
    missing, unscored_seconds = timed(lambda: store.unscored("reward"))
    all_missing, all_unscored_seconds = timed(lambda: store.unscored("another"))
    assert not missing and len(all_missing) == store.counts()["groups"]
    return {
        "open_seconds": seconds,
        "open_mb": resident,
        "unscored_seconds": max(unscored_seconds, all_unscored_seconds),
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and the seconds that it took."""
    began = time.perf_counter()
    value = work()
    return value, time.perf_counter() - began


def resident_mb() -> float:
    """Memory that this process has in RAM now, files that it has mapped included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(opened(Path(sys.argv[1]))))
