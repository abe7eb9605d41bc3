"""A run's directory: what lies where, who may use it, and whether it belongs to this recipe."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import differing_settings, recipe_digest
from brain_align.common.config.validation import parse_recipe
from brain_align.common.durable import is_temporary, write_file
from brain_align.common.errors import UserError
from brain_align.deploy.run.recipe_files import dump_yaml, load_yaml, yaml_problem

LOCK = ".lock"


@dataclass(frozen=True)
class RunDirectory:
    """The layout below a run's root, and where its store is if that is elsewhere."""

    root: Path
    store_uri: str | None = None

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.root / "config.yaml"

    @property
    def facts(self) -> Path:
        """What identifies the run and its inputs."""
        return self.root / "run.json"

    @property
    def own_store(self) -> Path:
        """The place of the sample store, unless the recipe names another."""
        return self.root / "store"

    @property
    def store(self) -> str | Path:
        """The sample store of what the run samples, scores and trains."""
        return self.own_store if self.store_uri is None else self.store_uri

    @property
    def evaluation(self) -> Path:
        """The sample store of evaluations, apart from training's."""
        return self.root / "evaluation"

    @property
    def policies(self) -> Path:
        """Published proposal versions."""
        return self.root / "policies"

    @property
    def dequantized(self) -> Path:
        """The model that a quantised policy's samplers load."""
        return self.root / "dequantized"

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

    @property
    def quarantine(self) -> Path:
        """What the run goes on without."""
        return self.root / "quarantine.json"

    @property
    def status(self) -> Path:
        """How the run stands, rewritten every second while it is alive."""
        return self.root / "status.json"

    @property
    def control(self) -> Path:
        """What is asked of the live run, and its answers."""
        return self.root / "control"

    @property
    def golden_values(self) -> Path:
        """The scorers' golden values, a file each."""
        return self.root / "golden"

    @property
    def logs(self) -> Path:
        """The actors' log files; there is none before the first actor has started."""
        return self.root / "logs"

    def golden(self, scorer: str) -> Path:
        """The values that a scorer gave fixed texts when the run began."""
        return self.golden_values / f"{scorer}.json"

    def log(self, name: str) -> Path:
        """The log file of one actor."""
        return self.logs / f"{name}.log"


def is_in_use(root: Path, marker: Path, what: str, advice: str) -> bool:
    """Whether a directory of ours has been begun.

    Args:
        root: the directory.
        marker: the file that is written first of all.
        what: what the directory is, for messages.
        advice: for messages: how to choose another.

    Raises:
        UserError: `root` is a file, or a directory that holds something else.
    """
    if not root.exists():
        return False
    if not root.is_dir():
        raise UserError(f"{root} is a file, not a {what}; {advice}.")
    if marker.exists():
        return True
    foreign = sorted(entry.name for entry in root.iterdir() if not is_temporary(entry) and entry.name != LOCK)
    if foreign:
        raise UserError(f"{root} is not a {what} (it has {', '.join(foreign[:3])}, but no {marker.name}); {advice}.")
    return False


def check_config(directory: RunDirectory, recipe: Recipe) -> None:
    """Refuse a run directory that another configuration has begun, or that holds something else.

    Begun means that something was sampled: a start that failed before that may be corrected and tried again.

    Raises:
        UserError: with one line for each setting that differs.
    """
    root = directory.root
    if not is_in_use(root, directory.config, "run directory", "set run.dir to a new or empty one"):
        return
    saved = _saved_config(directory)
    if not has_begun(directory):
        _check_readable(directory, saved)
        return
    _check_kind(root, saved, recipe)
    differing = differing_settings(saved, recipe.model_dump(mode="json"))
    if differing:
        lines = "\n".join(f"  {line}" for line in differing)
        raise UserError(
            f"{root} holds a run of a different configuration; set another run.dir, or undo the difference:\n{lines}"
        )


def _check_readable(directory: RunDirectory, saved: Mapping[str, Any]) -> None:
    """Refuse a file that is not a recipe: it may be somebody else's, and stays as it is."""
    try:
        parse_recipe(saved, str(directory.config))
    except UserError:
        raise UserError(
            f"{directory.config} is not a configuration that this version can read, and nothing was sampled here; "
            f"remove it, or set another run.dir."
        ) from None


def saved_recipe(directory: RunDirectory) -> Recipe:
    """The recipe that a run was begun with.

    Raises:
        UserError: there is no run, or its configuration is not one of this version.
    """
    if not directory.config.exists():
        raise UserError(f"{directory.root} is not a run directory: it has no config.yaml; name the directory of a run.")
    return parse_recipe(_saved_config(directory), str(directory.config))


def _check_kind(root: Path, saved: Mapping[str, Any], recipe: Recipe) -> None:
    """Replicas may change, but not whether a run samples its own groups."""
    sampler = saved.get("sampler")
    sampled_then = not isinstance(sampler, Mapping) or sampler.get("replicas") != 0
    if sampled_then != (recipe.sampler.replicas > 0):
        held = "samples its own groups" if sampled_then else "trains from another store"
        raise UserError(f"{root} holds a run that {held}, and sampler.replicas says otherwise; set run.dir.")


def has_begun(directory: RunDirectory) -> bool:
    """Whether a run has published or sampled anything here."""
    stores = (directory.own_store, directory.evaluation)
    made = (directory.policies.glob("v*"), *(store.glob("*/*.arrow") for store in stores))
    return any(next(found, None) is not None for found in made)


def _saved_config(directory: RunDirectory) -> dict[str, Any]:
    try:
        settings = load_yaml(directory.config.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{directory.config} is not valid YAML: {yaml_problem(error)}; restore it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{directory.config} cannot be read: {error}.") from None
    if not isinstance(settings, dict):
        raise UserError(f"{directory.config} is not the configuration of a run; restore it, or set another run.dir.")
    return settings


def save_config(directory: RunDirectory, recipe: Recipe, inputs: Mapping[str, str | None]) -> None:
    """Save the resolved recipe and what identifies its inputs; later starts must find the same.

    Args:
        directory: of the run.
        recipe: as the user gave it.
        inputs: "world", the name of the prepared data, if any; "prompts", the digest of all prompts, or "source", that
            of the groups of another store that are trained on.

    Raises:
        UserError: the run began on other inputs.
    """
    facts_path = directory.facts
    if not has_begun(directory):
        for made in (directory.own_store, directory.evaluation, directory.golden_values):
            shutil.rmtree(made, ignore_errors=True)  # empty, but perhaps of a recipe that has been corrected since
        facts = {"recipe_digest": recipe_digest(recipe), **inputs, "created_at": time.time()}
        write_file(directory.config, dump_yaml(recipe.model_dump(mode="json")))
        write_file(facts_path, json.dumps(facts, indent=1))
    begun = json.loads(facts_path.read_text())
    for name, value in inputs.items():
        before = begun.get(name)
        if before != value:
            raise UserError(
                f"{directory.root} was begun with the {name} {before}, which is now {value}: the data or the way it is "
                f"prepared has changed; restore it, or set another run.dir."
            )
