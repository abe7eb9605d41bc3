"""From finished cells to the figures of build/bench/peer.json: the best learning rates, who was first, by how much."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from tests.bench.peer_cases.cases import OURS, Case

Result = dict[str, Any]
"""What the file of a finished cell holds."""


def first_at(points: list[dict[str, float]], target: float) -> dict[str, float] | None:
    """Return the first judged version whose win rate is the target or more, None if there is none."""
    return next((point for point in points if point["win_rate"] >= target), None)


def of_cell(result: Result, target: float) -> dict[str, Any]:
    """Return the row of one cell; what was not reached is None."""
    points = result["points"]
    reached = first_at(points, target)
    last = points[-1]
    return {
        "method": result["method"],
        "learning rate": result["learning_rate"],
        "seed": result["seed"],
        "start-up s": result["startup_seconds"],
        "training s": result["training_seconds"],
        "outputs": result["outputs"],
        "s / 1,000 outputs": 1000 * result["training_seconds"] / result["outputs"],
        "win %": last["win_rate"],
        "KL": last["kl"],
        "truth": last.get("truth"),
        "seconds_to_55": reached and reached["seconds"],
        "with start-up": reached and reached["seconds"] + result["startup_seconds"],
        "outputs_to_55": reached and reached["outputs"],
        "KL at 55": reached and reached["kl"],
        "truth at 55": reached and reached.get("truth"),
        "best_truth": max((point["truth"] for point in points if "truth" in point), default=None),
        "best reward": max(point["reward"] for point in points),
        "failed": result["failed"],
    }


def of_methods(case: Case, results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return one row per method at its best learning rate: means over seeds.

    The best rate is the one that reaches the target soonest over the seeds that all rates of the method have; where
    none does, the one with the highest win rate at its end. A seed that does not reach the target leaves the method
    without a time to it.
    """
    by_method: dict[str, dict[Any, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        row = of_cell(result, case.target)
        by_method[row["method"]][row["learning rate"]].append(row)
    return [_mean_row(method, rates) for method, rates in by_method.items()]


def _mean_row(method: str, rates: dict[Any, list[dict[str, Any]]]) -> dict[str, Any]:
    shared = set.intersection(*({row["seed"] for row in rows} for rows in rates.values()))
    best = min(rates, key=lambda rate: _rank([row for row in rates[rate] if row["seed"] in shared or not shared]))
    rows = rates[best]
    numbers = [name for name in rows[0] if name not in ("method", "learning rate", "seed", "failed")]
    means = {name: _mean([row[name] for row in rows]) for name in numbers}
    return {"method": method, "learning rate": best, "rates tried": len(rates), "seeds": len(rows), **means}


def _rank(rows: list[dict[str, Any]]) -> tuple[int, float]:
    """Sort what reaches the target by its seconds before what does not, by its win rate, before what failed."""
    if any(row["failed"] for row in rows):
        return (2, 0.0)
    seconds = _mean([row["seconds_to_55"] for row in rows])
    return (1, -fmean(row["win %"] for row in rows)) if seconds is None else (0, seconds)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the case's figures: the better of ours against the better of TRL's, in each figure by itself.

    `speedup_vs_best_trl` is TRL's training seconds to the target over ours, `samples_vs_best_trl` our outputs to it
    over TRL's. `throughput_vs_best_trl` compares seconds per output, sampled and trained on, over whole runs.
    """
    ours = [row for row in rows if row["method"] in OURS]
    theirs = [row for row in rows if row["method"] not in OURS]
    return {
        "speedup_vs_best_trl": _ratio(_least(theirs, "seconds_to_55"), _least(ours, "seconds_to_55")),
        "speedup_with_startup_vs_best_trl": _ratio(_least(theirs, "with start-up"), _least(ours, "with start-up")),
        "samples_vs_best_trl": _ratio(_least(ours, "outputs_to_55"), _least(theirs, "outputs_to_55")),
        "throughput_vs_best_trl": _ratio(_least(theirs, "s / 1,000 outputs"), _least(ours, "s / 1,000 outputs")),
    }


def _least(rows: list[dict[str, Any]], name: str) -> float | None:
    return min((row[name] for row in rows if row[name] is not None), default=None)


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None
