"""A run's directory: what lies where, who may use it, and whether it belongs to this recipe."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from common.config.recipe import Recipe
from common.config.validation import differing_settings, recipe_digest
from common.durable import write_file
from common.errors import UserError
from deploy.recipe_files import dump_yaml


@dataclass(frozen=True)
class RunDirectory:
    """The layout below a run's root."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.root / "config.yaml"

    @property
    def store(self) -> Path:
        """The sample store that training consumes."""
        return self.root / "store"

    @property
    def evaluation(self) -> Path:
        """The sample store of evaluations, apart from training's."""
        return self.root / "evaluation"

    @property
    def policies(self) -> Path:
        """Published proposal versions."""
        return self.root / "policies"

    @property
    def adapter(self) -> Path:
        """The result: the best version's adapter."""
        return self.root / "adapter"

    @property
    def summary(self) -> Path:
        """Before and after, in figures."""
        return self.root / "summary.json"

    @property
    def examples(self) -> Path:
        """A few prompts with gold, SFT and aligned output."""
        return self.root / "examples.md"

    @property
    def metrics(self) -> Path:
        """One JSON line per step and evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    def log(self, name: str) -> Path:
        """The log file of one actor."""
        return self.root / "logs" / f"{name}.log"


def resolve_output(path: str) -> Path:
    """Where a relative output path lies: below the current directory, or, inside a Ray job, below `$BRAIN_HOME`.

    A Ray job's current directory is a copy that Ray deletes, so results must not go there; the default of
    `$BRAIN_HOME` is `~/brain`, on the cluster's head node.
    """
    wanted = Path(path).expanduser()
    in_ray_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    base = Path(os.environ.get("BRAIN_HOME", "~/brain")).expanduser() if in_ray_job else Path.cwd()
    return (base / wanted).absolute()


@contextmanager
def claimed(directory: RunDirectory) -> Iterator[None]:
    """Hold the run directory for this process; the hold ends with the process, however it ends.

    Raises:
        UserError: another live process holds it, or the directory cannot be written.
    """
    try:
        directory.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"Cannot use the run directory {directory.root}: {error.strerror}; set run.dir.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is running on {directory.root}; wait for it, stop it, or set another run.dir."
            ) from None
        yield
    finally:
        os.close(handle)


def check_config(directory: RunDirectory, recipe: Recipe) -> None:
    """Refuse a run directory that another configuration has begun, or that holds something else.

    Raises:
        UserError: with one line for each setting that differs.
    """
    if not directory.config.exists():
        foreign = sorted(entry.name for entry in directory.root.iterdir()) if directory.root.exists() else []
        if set(foreign) - {".lock"}:
            raise UserError(
                f"{directory.root} is no run directory (it has {', '.join(foreign[:3])}, but no config.yaml); set "
                f"run.dir to a new or empty one."
            )
        return
    differing = differing_settings(yaml.safe_load(directory.config.read_text()), recipe.model_dump(mode="json"))
    if differing:
        lines = "\n".join(f"  {line}" for line in differing)
        raise UserError(
            f"{directory.root} holds a run of a different configuration; set another run.dir, or undo the "
            f"difference:\n{lines}"
        )


def save_config(directory: RunDirectory, recipe: Recipe, world: Path | None) -> None:
    """Save the resolved recipe and the world that it runs in; later starts must find the same.

    Raises:
        UserError: the run began in another world (its raw data has changed since).
    """
    name = None if world is None else world.name
    if not directory.config.exists():
        write_file(directory.config, dump_yaml(recipe.model_dump(mode="json")))
    facts_path = directory.root / "run.json"
    if not facts_path.exists():
        facts = {"recipe_digest": recipe_digest(recipe), "world": name, "created_at": time.time()}
        write_file(facts_path, json.dumps(facts, indent=1))
    began_in = json.loads(facts_path.read_text())["world"]
    if began_in != name:
        raise UserError(
            f"{directory.root} was begun on the prepared data {began_in}, which is now {name}: the raw data or the way "
            f"it is prepared has changed; restore it, or set another run.dir."
        )
