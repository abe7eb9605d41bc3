"""Writers and readers of one store at once: `python -m … {write|read} STORE NAME SECONDS`.

A writer appends leases of its own, and now and then one that the other writer appends too; writer0 records steps. A
reader opens and refreshes the store, checks each snapshot, and prints how many it has seen and what was wrong with
them, as JSON.
"""

import json
import sys
import time
from contextlib import nullcontext

import numpy as np

from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.common.store.sample_store import SampleStore
from tests.integration.store.store_faults import append_lease, bad_rows, busy_housekeeping, rows_of, snapshot

GRACE = 2.0  # seconds that a replaced part stays: longer than a reader takes to list a folder and read it


def write(root: str, name: str, seconds: float) -> None:
    """Append until the time is up; prints how many leases were acknowledged."""
    until, lease = time.monotonic() + seconds, 0
    with busy_housekeeping(GRACE):
        store = SampleStore(root, "run")
        trains = name == "writer0"
        with store.training() if trains else nullcontext():
            while time.monotonic() < until:
                append_lease(store, f"{name}-{lease}", lease + 1 if trains else None, lambda _: None)
                store.append_groups(batch_from_rows(GROUPS, rows_of([f"shared-{lease}"])))
                if lease % 20 == 0:
                    store.refresh()
                lease += 1
    print(json.dumps({"leases": lease}))


def problems_of(store: SampleStore, last_count: int) -> list[str]:
    """What is inconsistent in what a reader sees."""
    problems = list(store.damaged)
    rows = snapshot(store)
    problems += [f"bad row {name}" for name in bad_rows(rows)]
    problems += [f"score without its group {name}" for name in rows["scores"].keys() - rows["groups"].keys()]
    for step in rows["steps"]:
        if not set(step["group_ids"]) <= rows["scores"].keys():
            problems.append(f"step {step['step']} refers to what is not there")
    if len(rows["groups"]) < last_count:
        problems.append(f"{len(rows['groups'])} groups after {last_count}")
    listed = list(store.group_ids)
    if len(listed) != len(set(listed)):
        problems.append("a group is listed twice")
    return problems


def read(root: str, name: str, seconds: float) -> None:
    """Open or refresh, and check, until the time is up."""
    random, until = np.random.default_rng(len(name)), time.monotonic() + seconds
    snapshots, problems, count = 0, [], 0
    store = SampleStore(root, None, read_only=True)
    while time.monotonic() < until:
        if random.random() < 0.3:
            store = SampleStore(root, None, read_only=True)
        else:
            store.refresh()
        problems += problems_of(store, count)
        count = store.counts()["groups"]
        snapshots += 1
    print(json.dumps({"snapshots": snapshots, "problems": problems[:10], "groups": count}))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](sys.argv[2], sys.argv[3], float(sys.argv[4]))
