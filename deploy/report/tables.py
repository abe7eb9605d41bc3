"""The tables of a run's page: before and after, settings, and time."""

from collections.abc import Mapping
from typing import Any

from brain_align.common.uris import shown
from brain_align.deploy.pages.text_table import number, points
from brain_align.deploy.report.run_data import Evaluated, RunData
from brain_align.deploy.run.result.card import FIGURES

_REFERENCES = {"mean_reward": "mean_gold_reward", "truth_quality": "gold_truth_quality"}
_INTERVALS = {"train_rm_win_rate": "train_rm_win_rate_ci95"}
_BETTER_IF_HIGHER = ("train_rm_win_rate", "mean_reward", "truth_quality")
_SETTINGS = (
    "policy.model",
    "policy.method",
    "objective.name",
    "objective.reward",
    "objective.temperature",
    "sampling.n",
    "sampling.max_tokens",
    "algorithm.rounds",
    "algorithm.prompts_per_round",
    "algorithm.updates_per_round",
    "algorithm.batch_prompts",
    "algorithm.max_staleness",
    "learner.learning_rate",
    "seed",
)
"""Those that are always shown."""


def results(runs: list[RunData]) -> list[tuple[str, list[list[tuple[str, str]]]]]:
    """Return the rows of before and after: a label, and for each run its cells, each a text and a CSS class."""
    rows = []
    for label, name, form in FIGURES:
        if name in _INTERVALS.values():
            continue
        digits = max(1, int(form.partition(".")[2][0]))  # of {:.2f}
        cells = [_result_cells(run.evaluated, name, digits) for run in runs]
        if any(text for of_run in cells for text, _ in of_run):
            rows.append((label, cells))
    counts = [[_count(run, "before"), _count(run, "after"), ("", ""), ("", "")] for run in runs]
    return [*rows, ("prompts", counts)]


def _count(run: RunData, which: str) -> tuple[str, str]:
    figures = getattr(run.evaluated, which) if run.evaluated else {}
    failed = f" ({figures['failed']} failed)" if figures.get("failed") else ""
    return f"{figures.get('prompts', '')}{failed}", ""


def _result_cells(evaluated: Evaluated | None, name: str, digits: int) -> list[tuple[str, str]]:
    """Return before, after, difference and reference."""
    if evaluated is None or evaluated.before.get(name) is None or evaluated.after.get(name) is None:
        return [("", "")] * 4
    before, after = (_figure(figures, name, digits) for figures in (evaluated.before, evaluated.after))
    reference = evaluated.after.get(_REFERENCES.get(name, ""))
    return [
        (before, ""),
        (after, ""),
        _difference(evaluated, name, digits),
        ("" if reference is None else number(reference, digits), ""),
    ]


def _figure(figures: Mapping[str, Any], name: str, digits: int) -> str:
    interval = figures.get(_INTERVALS.get(name, ""))
    return f"{figures[name]:z.{digits}f}" + ("" if interval is None else f" ± {number(interval, digits)}")


def _difference(evaluated: Evaluated, name: str, digits: int) -> tuple[str, str]:
    paired = evaluated.differences.get(name)
    if paired is None:
        return f"{evaluated.after[name] - evaluated.before[name]:+z.{digits}f}", ""
    better = "" if name not in _BETTER_IF_HIGHER else "good" if paired.low > 0 else "bad" if paired.high < 0 else ""
    return points(paired, digits).replace(", ", ",\u00a0"), better  # one piece, where lines are short


def settings(runs: list[RunData]) -> list[tuple[str, list[str], bool]]:
    """Return the settings that are always shown, then those in which the runs differ: name, values, whether they do."""
    flat = [flattened(run.recipe.model_dump(mode="json")) for run in runs]
    names = dict.fromkeys([*_SETTINGS, *(name for one in flat for name in one if not name.startswith("run."))])
    rows = [(name, [_value(one, name) for one in flat]) for name in names]
    marked = [(name, values, len(set(values)) > 1) for name, values in rows]
    return [row for row in marked if row[2] or row[0] in _SETTINGS]


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name; URIs as messages may show them."""
    if isinstance(value, Mapping) and value:
        inner = [flattened(one, f"{prefix}.{name}" if prefix else str(name)) for name, one in value.items()]
        return {name: one for part in inner for name, one in part.items()}
    return {prefix: shown(value) if isinstance(value, str) else value}


def _value(flat: Mapping[str, Any], name: str) -> str:
    value = flat.get(name, "")
    return "null" if value is None else str(value)


_STAGES = {
    "prepare": "building the data and models that the recipe prepares",
    "checks": "checks of models, data and scorers",
    "start": "start of the services, to the first step",
    "work": "sampling, scoring, training and evaluation",
    "rest": "start and end of Ray; writing the result",
    "total": "total",
}


def times(run: RunData) -> list[tuple[str, float]]:
    """Return the parts of a finished run's last start and their sum, in seconds: they add up."""
    seconds = run.summary.get("seconds", {})
    if "total" not in seconds:
        return []
    pipeline, start = seconds.get("pipeline", 0.0), seconds.get("start", 0.0)
    parts = {name: seconds[name] for name in ("prepare", "checks") if name in seconds}
    parts |= {"start": start} if start else {}
    parts["work"] = round(pipeline - start, 1)
    parts["rest"] = round(seconds["total"] - sum(parts.values()), 1)
    return [(_STAGES[name], value) for name, value in [*parts.items(), ("total", seconds["total"])] if value]


def idle_shares(run: RunData) -> list[tuple[str, float, int, float]]:
    """Return for each stage its busy seconds, summed over its replicas, their number, and in percent how idle it was.

    Relative to the time in which the services were there; a learner's start counts as its work.
    """
    seconds, recipe = run.summary.get("seconds", {}), run.recipe
    scorers = [scorer.replicas for scorer in recipe.scorers.values()] + [recipe.prior.replicas]
    replicas = {"sampling": recipe.sampler.replicas, "scoring": sum(scorers), "training": 1}
    return [
        (stage, seconds[stage], count, max(0.0, 100 * (1 - seconds[stage] / (count * seconds["pipeline"]))))
        for stage, count in replicas.items()
        if seconds.get(stage) and seconds.get("pipeline") and count
    ]
