"""What a tracker does, and what it is told about the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import recipe_digest
from brain_align.common.identity import digest


class MetricsTracker(Protocol):
    """An opened tracker; its calls may take long, and may raise anything."""

    def log(self, kind: str, number: int, figures: Mapping[str, float]) -> None:
        """Record figures of a step (kind `step`) or of a version's evaluation (kind: the split)."""

    def close(self) -> None:
        """Send everything, and end the record of this start."""


@dataclass(frozen=True)
class TrackedRun:
    """What trackers show of a run. `key` is the same whenever the run is resumed, and differs between directories."""

    name: str
    key: str
    root: Path
    settings: dict[str, Any]  # the recipe, which holds no secrets


def tracked_run(recipe: Recipe, root: Path) -> TrackedRun:
    """Return what trackers are told about the run of a recipe in a directory."""
    return TrackedRun(
        recipe.name, digest("tracked", recipe_digest(recipe), str(root)), root, recipe.model_dump(mode="json")
    )


def axis(kind: str) -> str:
    """Return what figures of a kind are drawn over: steps, or versions."""
    return "step" if kind == "step" else "version"
