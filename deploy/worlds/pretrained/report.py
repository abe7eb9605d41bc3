"""What is said of a world that was made from a pretrained model: the table, and warnings where its rewards are poor."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.scorers import ClassifierSection

FACTS = "world.json"
JUDGES = ("reward", "gold")
"""The reward models of a world, by the names of their directories and of their facts."""


def read_facts(world: Path) -> dict[str, Any]:
    """Return the facts of a world; none where there is no world."""
    path = world / FACTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def quality_table(facts: dict[str, Any]) -> Table:
    """Return the table of the reward models' quality on held-out pairs."""
    table = Table(title=f"reward models from {facts['base']}, on held-out pairs", title_justify="left")
    table.add_column("")
    for judge in JUDGES:
        table.add_column(judge, justify="right")
    found = [facts[judge] for judge in JUDGES]
    for label, cells in _rows(found):
        table.add_row(label, *cells)
    return table


def summary_lines(facts: dict[str, Any]) -> list[str]:
    """Return what else is to be said of a world: agreement of the models, policy, sizes, time, and warnings."""
    agree, policy, sizes = facts["agreement"], facts["policy"], facts["rows"]
    prompts = ", ".join(f"{split} {count:,}" for split, count in sizes["prompts"].items())
    return [
        f"reward and gold order {100 * agree['share']:.1f} ± {100 * agree['share_ci95']:.1f} % of the pairs alike",
        f"policy: {policy['examples']:,} examples; held-out loss {policy['base_loss']:.3f} → "
        f"{policy['held_out_loss']:.3f} nats per token",
        f"prompts: {prompts}",
        f"a reward measures {facts['measures']}",
        f"time: {_minutes(facts['seconds']['total'])}",
        *facts["warnings"],
    ]


def warnings_of(recipe: Recipe, scorers: Collection[str] | None = None) -> list[str]:
    """Return the warnings about the reward models that a recipe's scorers name, from the facts beside them.

    `scorers` are the names of those that are used; None: all. World and paths are resolved.
    """
    found: list[str] = []
    for name, section in recipe.scorers.items():
        if scorers is not None and name not in scorers:
            continue
        if isinstance(section, ClassifierSection) and Path(section.path).name in JUDGES:
            facts = read_facts(Path(section.path).parent)
            own = facts.get(Path(section.path).name, {})
            found += [own["warning"]] if isinstance(own, dict) and own.get("warning") else []
    return found


def _rows(found: list[dict[str, Any]]) -> Iterable[tuple[str, list[str]]]:
    yield "trained on pairs", [f"{one['pairs']:,}" for one in found]
    quality = [one["quality"] for one in found]
    yield "held-out pairs", [f"{one['pairs']:,}" for one in quality]
    for label, name, interval in (
        ("accuracy, %", "accuracy", "accuracy_ci95"),
        ("length alone, %", "length_accuracy", None),
        ("  better than that by", "above_length", "above_length_ci95"),
        ("confidence, % (calibrated: = accuracy)", "confidence", None),
        ("calibration error, %", "calibration_error", None),
    ):
        yield label, [_percent(one[name], one[interval] if interval else None) for one in quality]
    yield "length alone prefers the", [one["length_prefers"] for one in quality]
    yield "log loss, nats (a coin: 0.693)", [f"{one['log_loss']:.3f}" for one in quality]
    yield "spread of a prompt's rewards", [f"{one['spread']:.2f}" for one in quality]


def _percent(value: float, interval: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if interval is None else f" ± {100 * interval:.1f}")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
