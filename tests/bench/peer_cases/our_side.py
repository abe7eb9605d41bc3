"""Our side of a cell: `brain run` as a user types it, and its times from the store and the summary that it leaves."""

import json
import subprocess
import sys
import time
from typing import Any

import pyarrow as pa

from brain_align.common.policies import PolicyRegistry
from brain_align.common.schemas import PRIOR
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.run.directory import RunDirectory
from tests.bench.peer_cases.cases import Cell, recipe_file, resolved
from tests.locations import ROOT

Spans = dict[int, tuple[float, float]]
"""By round: when the first began and the last ended, in seconds since the epoch."""


def command(cell: Cell) -> list[str]:
    """Return the arguments of `brain` that train the cell, as typed in the repository's root."""
    settings = [f"{name}={_yaml(value)}" for name, value in cell.overrides().items()]
    return ["run", str(recipe_file(cell.case).relative_to(ROOT)), *settings]


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def train(cell: Cell) -> None:
    """Run the cell, and write its times beside the run directory.

    Raises:
        CalledProcessError: the run failed; its output is in `run.log`.
    """
    cell.work.mkdir(parents=True, exist_ok=True)
    launched = time.time()
    with open(cell.work / "run.log", "w", encoding="utf-8") as log:
        arguments = [sys.executable, "-m", "brain_align.deploy.cli", *command(cell)]
        subprocess.run(arguments, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    figures = times(resolved(cell).directory, launched, time.time())
    (cell.work / "trained.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


def times(directory: RunDirectory, launched: float, ended: float) -> dict[str, Any]:
    """Return a run's times, all read from what it stored.

    Training begins when the first group for training is begun, so that start-up is everything before it, and a version
    is there when the step that ends its round is done.
    """
    store = SampleStore(directory.store, None, read_only=True)
    steps = store.steps()
    columns = ["group_id", "round", "started_at", "finished_at", "outputs"]
    groups = pa.Table.from_batches(store.batches(columns=columns)).to_pylist()
    began = min(group["started_at"] for group in groups)
    registry = PolicyRegistry(directory.policies)
    points = []
    for step in steps:
        if (version := step["published_version"]) is None:
            continue
        sampled = [group for group in groups if group["finished_at"] <= step["finished_at"]]
        outputs = [output for group in sampled for output in group["outputs"]]
        points.append(
            {
                "version": version,
                "seconds": step["finished_at"] - began,
                "outputs": len(outputs),
                "tokens": sum(len(output["token_ids"]) for output in outputs),
                "adapter": str(registry.verify(version).path.relative_to(directory.root.parent)),
            }
        )
    summary = json.loads(directory.summary.read_text(encoding="utf-8"))
    return {
        "startup_seconds": began - launched,
        "training_seconds": points[-1]["seconds"],
        "shutdown_seconds": ended - steps[-1]["finished_at"],
        "stages": summary["seconds"],
        "timeline": timeline(store, groups, steps),
        "points": points,
    }


def timeline(store: SampleStore, groups: list[dict[str, Any]], steps: list[dict[str, Any]]) -> dict[str, float]:
    """Divide the training time of a strict run, whose stages take turns, among them.

    Delivery is what lies between the last step of a round and the first output of the next one: checkpoint,
    publication, the samplers' new weights. Where stages overlap the parts overlap, too, and delivery may be negative.
    """
    sampled = _spans([(group["round"], group["started_at"], group["finished_at"]) for group in groups])
    round_of = {group["group_id"]: group["round"] for group in groups}
    rows = [row for name in _scorers(store) for row in store.scores(list(round_of), name).to_pylist()]
    scored = _spans([(round_of[row["group_id"]], row["scored_at"], row["scored_at"]) for row in rows])
    trained = _spans([(step["round"], step["finished_at"], step["finished_at"]) for step in steps])
    rounds = sorted(trained)
    return {
        "sampling": sum(sampled[r][1] - sampled[r][0] for r in rounds),
        "scoring": sum(scored[r][1] - sampled[r][1] for r in rounds),
        "training": sum(trained[r][1] - scored[r][1] for r in rounds),
        "delivery": sum(sampled[r + 1][0] - trained[r][1] for r in rounds[:-1]),
    }


def _scorers(store: SampleStore) -> list[str]:
    return sorted({PRIOR, *(facts.name for facts in store.scorers())})


def _spans(rows: list[tuple[int, float, float]]) -> Spans:
    spans: Spans = {}
    for round_, begin, end in rows:
        first, last = spans.get(round_, (begin, end))
        spans[round_] = (min(first, begin), max(last, end))
    return spans
