"""A store of a million groups, as a run leaves it, and what is asked of it in a process of its own.

python -m tests.bench.store_million ROOT {open|resume}      prints one line of JSON
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from common.config.recipe import AlgorithmSection
from common.storage.compaction import remove_superseded
from common.store import SampleStore
from deploy.draws import StoredGroups
from deploy.rounds import Rounds
from deploy.tracking import Tracker
from tests.bench import store_rows

RUN = "million"
LEASE = 64
N, TOKENS = 4, 4  # small outputs, or a million groups would not fit on the disk; opening reads none of them
SCORERS = ("reward", "prior")
STEP_GROUPS = 64


def build(root: Path, groups: int) -> None:
    """Append leases, their scores, and a step for each, as a run does; but nothing waits for the disk."""
    at_once = functools.partial(remove_superseded, grace=0.0)
    with mock.patch("os.fsync"), mock.patch("common.store.remove_superseded", at_once):
        store = SampleStore(root, RUN)
        for number, first in enumerate(range(0, groups, LEASE), start=1):
            names = store_rows.ids(first, min(LEASE, groups - first))
            store.append_groups(store_rows.groups(names, N, TOKENS, number // 25))
            for scorer in SCORERS:
                store.append_scores(store_rows.scores(names, scorer, N))
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
    store, seconds = _timed(lambda: SampleStore(root, None, read_only=True))
    resident = _resident_mb()
    missing, unscored_seconds = _timed(lambda: store.unscored("reward"))
    all_missing, all_unscored_seconds = _timed(lambda: store.unscored("another"))
    assert not missing and len(all_missing) == store.counts()["groups"]
    return {
        "open_seconds": seconds,
        "open_mb": resident,
        "unscored_seconds": max(unscored_seconds, all_unscored_seconds),
    }


def resumed(root: Path) -> dict[str, float]:
    """What a run does with its store before it goes on: count, rewrite the metrics, find what is ready."""
    algorithm = AlgorithmSection(rounds=1, prompts_per_round=1, updates_per_round=1, batch_prompts=1)

    def resume() -> None:
        store = SampleStore(root, RUN)
        tracker = Tracker(algorithm, root.parent / "metrics.jsonl", root.parent / "board", Console(quiet=True))
        tracker.recovered(store)
        tracker.close()
        missing = {group for scorer in SCORERS for group in store.unscored(scorer)}
        index = store.index()
        rounds = Rounds(algorithm, StoredGroups(index), 0)
        columns = (index[name].to_pylist() for name in ("round", "prompt_id", "group_id"))
        for round_, prompt_id, group in zip(*columns, strict=True):
            if group not in missing:
                rounds.add(round_, prompt_id, group)

    _, seconds = _timed(resume)
    return {"resume_seconds": seconds, "resume_mb": _resident_mb()}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    value = work()
    return value, time.perf_counter() - began


def _resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps({"open": opened, "resume": resumed}[sys.argv[2]](Path(sys.argv[1]))))
