"""Pages of runs that have not finished, or are not whole."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from brain_align.common.system.processes import this_process
from brain_align.deploy.report.report import report_page
from brain_align.deploy.report.run_data import read_run
from tests.unit.deploy.report.read_page import Read
from tests.unit.deploy.report.reported_runs import begun_run, finished_run


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"versions": (), "steps": 0}, ["not started", "No evaluation has finished", "There are none yet"]),
        ({"versions": (0,), "steps": 3}, ["No evaluation has finished", "Times are known when the run has finished"]),
        ({}, ["version 2 is the newest one evaluated so far"]),
    ],
)
def test_a_run_that_has_not_finished_has_a_page_that_says_so(
    tmp_path: Path, left: dict[str, Any], said: list[str]
) -> None:
    read = Read(report_page([begun_run(tmp_path / "run", **left).root]))
    for sentence in said:
        assert sentence in " ".join(read.text.split())


@pytest.mark.parametrize(
    ("state", "changes", "said"),
    [
        ("running", {}, "still going: step 3 of 8"),
        ("running", {"pid": 2**22 + 1, "started": 1}, "interrupted at step 3 of 8"),
        ("failed", {}, "failed at step 3 of 8: the disk is full"),
    ],
)
def test_the_page_says_how_far_the_run_is(tmp_path: Path, state: str, changes: dict[str, int], said: str) -> None:
    run = begun_run(tmp_path / "run", versions=(0,), steps=3)
    process = vars(this_process()) | changes
    progress: dict[str, Any] = dict.fromkeys(("round", "rounds", "version", "sampled", "scored", "trained"), 1) | {
        "step": 3,
        "steps": 8,
    }
    progress |= dict.fromkeys(("sampled_rate", "scored_rate", "trained_rate"), 1.0)
    progress |= dict.fromkeys(("staleness", "left_seconds", "reward", "kl", "ess"))
    left_out = {"purpose": "train", "round": 0, "prompt_id": "p7", "service": "sampler", "error": "it died"}
    status = {
        "state": state, "failure": "the disk is full" if state == "failed" else None, "host": "here",
        "pid": os.getpid(), "process": process, "started_at": 1.0, "progress": progress,
        "backlog": {"leases": 0, "unscored": 0, "ready": 0}, "services": {}, "automatic": False, "scaling": [],
        "quarantined": [left_out],
    }  # fmt: skip
    run.status.write_text(json.dumps(status))
    read = Read(report_page([run.root]))
    assert said in read.text
    assert "quarantined: train round 0 prompt p7" in read.text


def test_warnings_of_steps_are_those_of_the_log(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    run.logs.mkdir()
    lines = ["INFO tracker: WARNING: step 1: sampler and learner differ"] * 2 + ["INFO tracker: nothing"]
    lines += ["WARNING pool: it waits", *(f"WARNING pool: {number}" for number in range(60))]
    run.log("brain").write_text("".join(f"2026-01-01 10:00:00,000 {line}\n" for line in lines))
    warnings = read_run(run.root, "run").warnings
    assert warnings[:3] == [
        "The reward model is hardly better than length alone.",
        "WARNING: step 1: sampler and learner differ",
        "it waits",
    ]
    assert len(warnings) == 52 and warnings[-1].startswith("12 more are in ")


def test_a_damaged_file_costs_its_samples_alone(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    for store in (run.own_store, run.evaluation):
        for part in store.glob("groups/*.arrow"):
            content = bytearray(part.read_bytes())
            content[len(content) // 2] ^= 1
            part.write_bytes(content)
    read = Read(report_page([run.root]))
    assert read.json("samples-data") == []
    assert str(next(run.own_store.glob("groups/*.arrow"))) in read.text
    difference = next(row for row in read.tables[0] if row[0] == "mean reward")[3]
    assert difference == "+1.000"  # without an interval
