"""The trackers of a recipe: checked before the run starts, and opened together."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.trackers.background import Background
from brain_align.deploy.run.trackers.tracker_protocol import MetricsTracker, TrackedRun, tracked_run

_LIBRARIES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow-skinny SQLAlchemy alembic"}
"""Packages to install, by tracker (and module); the same stand in pyproject.toml as extras."""


def check_trackers(recipe: Recipe) -> list[str]:
    """Return what the user should know about the recipe's trackers before the run starts.

    Raises:
        UserError: a tracker's library is not installed; the message has the command that installs it.
    """
    tracking = recipe.tracking
    missing = [name for name in _LIBRARIES if getattr(tracking, name) is not None and not _is_installed(name)]
    if missing:
        packages = " ".join(_LIBRARIES[name] for name in missing)
        raise UserError(
            f"tracking.{missing[0]} needs a library that is not installed: pip install {packages}; or remove "
            f"tracking.{missing[0]} from the recipe."
        )
    if tracking.wandb is None:
        return []
    from brain_align.deploy.run.trackers.weights_and_biases import note_on_key

    note = note_on_key(tracking.wandb)
    return [] if note is None else [note]


def _is_installed(name: str) -> bool:
    """Return whether there is a library; a folder of its name, as wandb leaves them, looks like a package to Python."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


class Trackers:
    """All trackers of a run, as one; none of its calls waits or raises."""

    def __init__(self, trackers: Sequence[Background]) -> None:
        self._trackers = trackers

    def log(self, kind: str, number: int, figures: Mapping[str, float]) -> None:
        """Record figures of a step (kind `step`) or of a version's evaluation (kind: the split)."""
        for tracker in self._trackers:
            tracker.log(kind, number, figures)

    def close(self) -> None:
        """Send what is left, as far as there is time."""
        for tracker in self._trackers:
            tracker.close()


def open_trackers(recipe: Recipe, directory: RunDirectory, tell: Callable[[str], None]) -> Trackers:
    """Open the recipe's trackers, each in a thread of its own; `tell` gets what goes wrong, once for each."""
    run = tracked_run(recipe, directory.root)
    files = [tensorboard(directory.tensorboard, tell)] if recipe.tracking.tensorboard else []
    return Trackers([*files, *(Background(name, open_, tell) for name, open_ in _openers(recipe, run, tell).items())])


def tensorboard(directory: Path, tell: Callable[[str], None]) -> Background:
    """Write TensorBoard files."""
    from brain_align.deploy.run.trackers.tensorboard import TensorBoardFiles

    return Background("tensorboard", lambda: TensorBoardFiles(directory), tell)


def _openers(recipe: Recipe, run: TrackedRun, tell: Callable[[str], None]) -> dict[str, Callable[[], MetricsTracker]]:
    """Return what opens each tracker other than TensorBoard; libraries are imported there."""
    tracking = recipe.tracking
    openers: dict[str, Callable[[], MetricsTracker]] = {}
    if (wandb := tracking.wandb) is not None:
        from brain_align.deploy.run.trackers.weights_and_biases import WandbRun

        openers["wandb"] = lambda: WandbRun(wandb, run, tell)
    if (trackio := tracking.trackio) is not None:
        from brain_align.deploy.run.trackers.trackio_runs import TrackioRun

        openers["trackio"] = lambda: TrackioRun(trackio, run)
    if (mlflow := tracking.mlflow) is not None:
        from brain_align.deploy.run.trackers.mlflow_runs import MlflowRun

        openers["mlflow"] = lambda: MlflowRun(mlflow, run)
    return openers
