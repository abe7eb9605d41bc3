"""A run's directory: its layout, and whether it belongs to a recipe."""

import json
import shutil
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import differing_settings, recipe_digest
from brain_align.common.config.validation import parse_recipe
from brain_align.common.durable import is_temporary, write_file
from brain_align.common.errors import UserError
from brain_align.deploy.run.yaml_text import dump_yaml, load_yaml, yaml_problem

LOCK = ".lock"


class RunDirectory:
    """The layout below a run's root; `store_uri` says where its store is if that is elsewhere."""

    def __init__(self, root: Path, store_uri: str | None = None) -> None:
        self.root = root
        self.config = root / "config.yaml"  # the resolved recipe
        self.chat_template = root / "chat_template.jinja"  # in which the prompts were rendered; absent for plain texts
        self.facts = root / "run.json"  # what identifies the run and its inputs
        self.own_store = root / "store"
        self.store: str | Path = self.own_store if store_uri is None else store_uri  # what is sampled, scored, trained
        self.evaluation = root / "evaluation"  # the sample store of evaluations
        self.policies = root / "policies"  # published versions
        self.dequantized = root / "dequantized"  # the model that a quantised policy's samplers load
        self.adapter = root / "adapter"  # the result: the best version's adapter
        self.summary = root / "summary.json"
        self.examples = root / "examples.md"  # a few prompts with gold, SFT and aligned output
        self.report = root / "report.html"  # a page of everything
        self.metrics = root / "metrics.jsonl"  # a line per step and evaluation
        self.tensorboard = root / "tensorboard"
        self.quarantine = root / "quarantine.json"  # what the run continues without
        self.status = root / "status.json"  # rewritten every second while the run is alive
        self.control = root / "control"  # requests to the live run, and its answers
        self.golden_values = root / "golden"  # a file per scorer
        self.logs = root / "logs"  # a file per actor; made when the first one starts

    def golden(self, scorer: str) -> Path:
        """Return the file of the values that a scorer gave fixed texts when the run began."""
        return self.golden_values / f"{scorer}.json"

    def log(self, name: str) -> Path:
        """Return the log file of one actor."""
        return self.logs / f"{name}.log"


def is_in_use(root: Path, marker: Path, what: str, advice: str) -> bool:
    """Return true for a directory that has been begun: it has `marker`, the file that is written first.

    Messages use `what`, the kind of directory, and `advice` on choosing another.

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
    The UserError has one line for each setting that differs.
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
    """Return the recipe that a run was begun with; refuse a place without one that this version can read."""
    if not directory.config.exists():
        raise UserError(f"{directory.root} is not a run directory: it has no config.yaml; name the directory of a run.")
    return parse_recipe(_saved_config(directory), str(directory.config))


def _check_kind(root: Path, saved: Mapping[str, Any], recipe: Recipe) -> None:
    """Refuse a change between sampling and training from another store; other numbers of replicas may change."""
    sampler = saved.get("sampler")
    sampled_then = not isinstance(sampler, Mapping) or sampler.get("replicas") != 0
    if sampled_then != (recipe.sampler.replicas > 0):
        held = "samples its own groups" if sampled_then else "trains from another store"
        raise UserError(
            f"{root} holds a run that {held}, but this recipe's sampler.replicas means the opposite; choose another "
            f"run.dir."
        )


def has_begun(directory: RunDirectory) -> bool:
    """Return true if a run has published or sampled anything here."""
    stores = (directory.own_store, directory.evaluation)
    made = (directory.policies.glob("v*"), *(store.glob("*/*.arrow") for store in stores))
    return any(next(found, None) is not None for found in made)


def _saved_config(directory: RunDirectory) -> dict[str, Any]:
    try:
        settings = load_yaml(directory.config.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{directory.config} is not valid YAML: {yaml_problem(error)}; restore it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{directory.config} cannot be read: {error}.") from None
    if not isinstance(settings, dict):
        raise UserError(f"{directory.config} is not the configuration of a run; restore it, or set another run.dir.")
    return settings


def used_template(directory: RunDirectory) -> str | None:
    """Return the chat template that a run's prompts were rendered in, which belongs to the policy that was aligned.

    An export sets it as the written tokenizer's `chat_template`. None: prompts were plain texts, or the run was begun
    by an earlier version; the tokenizer then keeps its own.
    """
    try:
        return directory.chat_template.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def rendered_at(facts: Path) -> datetime | None:
    """Return the time that chat templates wrote into the prompts when a run (or a comparison) began, from its facts."""
    try:
        return datetime.fromisoformat(json.loads(facts.read_text(encoding="utf-8"))["rendered_at"])
    except (OSError, ValueError, KeyError, TypeError):  # not begun, or begun by an earlier version
        return None


def save_config(
    directory: RunDirectory, recipe: Recipe, inputs: Mapping[str, str | None], template: str | None = None
) -> None:
    """Save the resolved recipe, what identifies its inputs, and the chat template; later starts must find the same.

    The inputs are "world", the name of the prepared data; "prompts", the digest of all prompts as texts; "token_ids",
    that of their token ids and of what else decides these; "rendered_at", the time that chat templates write; "source",
    the digest of the groups of another store that are trained on; each None where there is none.
    Other inputs than those that the run began on are refused; those that an earlier version did not save are added.
    """
    facts_path = directory.facts
    if not has_begun(directory):
        for made in (directory.own_store, directory.evaluation, directory.golden_values):
            shutil.rmtree(made, ignore_errors=True)  # empty, but perhaps of a recipe that has been corrected since
        facts = {"recipe_digest": recipe_digest(recipe), **inputs, "created_at": time.time()}
        directory.chat_template.unlink(missing_ok=True)
        write_file(directory.config, dump_yaml(recipe.model_dump(mode="json")))
        write_file(facts_path, json.dumps(facts, indent=1))
    begun = json.loads(facts_path.read_text(encoding="utf-8"))
    for name, value in inputs.items():
        before = begun.get(name, value)
        if before != value and name == "token_ids":
            raise UserError(
                f"{directory.root} was begun with other token ids of the same texts: the tokenizer or the chat "
                f"template has changed since (the run's template is in {directory.chat_template}); restore it, or set "
                f"another run.dir."
            )
        if before != value:
            raise UserError(
                f"{directory.root} was begun with the {name} {before}, which is now {value}: the data or the way it is "
                f"prepared has changed; restore it, or set another run.dir."
            )
    if not begun.keys() >= inputs.keys():
        write_file(facts_path, json.dumps({**begun, **inputs}, indent=1))
    if template is not None and not directory.chat_template.exists():
        write_file(directory.chat_template, template)
