"""The directory of an evaluation: its layout, and whether it may be continued with a recipe."""

from pathlib import Path
from typing import Any

import yaml

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import differing_settings
from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.deploy.run.directory import RunDirectory, is_in_use
from brain_align.deploy.run.yaml_text import dump_yaml, load_yaml

_SCORED_BY = ("policy.", "prior.", "scorers.")
"""The settings that decide stored values; all others are part of the stored outputs' names."""


class EvaluationDirectory:
    """The layout below an evaluation's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "recipe.yaml"  # with which it was last continued; it marks the directory
        self.facts = root / "begun.json"  # the time that chat templates write into prompts
        self.store = root / "store"  # all outputs and scores, of this and earlier evaluations, as they came
        self.published = root / "published"  # adapters and models that are not a run's, as samplers load them
        self.rows = root / "outputs.parquet"  # the result: outputs with their scores
        self.figures = root / "evaluation.json"  # the result: all figures
        self.services = RunDirectory(root)  # logs, and what scorers prove themselves by


def check_directory(directory: EvaluationDirectory, recipe: Recipe) -> None:
    """Refuse a directory that holds something else, or values of other scorers under the same names.

    More scorers may be added, and prompts, sampling and WHATs may change: what is stored already is used again.

    Raises:
        UserError: with one line for each setting that differs.
    """
    if not is_in_use(directory.root, directory.recipe, "directory of an evaluation", "name another --output"):
        return
    saved, now = _saved(directory), recipe.model_dump(mode="json")
    common = saved["scorers"].keys() & now["scorers"].keys()
    alike = [{**one, "scorers": {name: one["scorers"][name] for name in common}} for one in (saved, now)]
    differing = [line for line in differing_settings(*alike) if line.startswith(_SCORED_BY)]
    if differing:
        lines = "\n".join(f"  {line}" for line in differing)
        raise UserError(
            f"{directory.root} holds values of other scorers, or of another prior; name another --output, give the new "
            f"scorer a name of its own, or undo the difference:\n{lines}"
        )


def save_recipe(directory: EvaluationDirectory, recipe: Recipe) -> None:
    """Write the recipe that an evaluation is continued with; scorers of earlier ones stay known."""
    settings = recipe.model_dump(mode="json")
    if directory.recipe.exists():
        settings["scorers"] = {**_saved(directory)["scorers"], **settings["scorers"]}
    write_file(directory.recipe, dump_yaml(settings))


def _saved(directory: EvaluationDirectory) -> dict[str, Any]:
    try:
        saved = load_yaml(directory.recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        saved = None
    if not isinstance(saved, dict) or not isinstance(saved.get("scorers"), dict):
        raise UserError(f"{directory.recipe} is not what brain evaluate wrote; restore it, or name another --output.")
    return saved
