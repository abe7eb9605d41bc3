"""The directory of a comparison: its layout, and the check that it belongs to a recipe."""

import json
from collections.abc import Mapping
from pathlib import Path

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import differing_settings
from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.deploy.run.directory import RunDirectory, is_in_use
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.yaml_text import dump_yaml

_OF_EACH_RUN = ("seed", "objective.name", "learner.learning_rate")
"""Settings of the base recipe that are not used: each training run has its own."""


class ComparisonDirectory:
    """The layout of a comparison's directory.

    seeds/N is the run directory of the groups that all training runs of seed N start from, cells/NAME that of one
    training run; services/ holds logs and golden values of the shared services.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "compare.yaml"  # the base recipe
        self.facts = root / "inputs.json"  # the digests of its inputs
        self.request = root / "request.json"  # the request so far: everything that earlier starts asked for
        self.services = RunDirectory(root / "services")  # the run directory of the services that all runs share
        self.results = root / "compare.json"  # all figures
        self.tables = root / "compare.md"  # all tables as Markdown
        self.page = root / "compare.html"  # all tables and plots, as one HTML file
        self.answers = root / "answers.md"  # outputs for a person to read, where asked for
        self.plots = root / "plots"  # the plots as PNG and SVG

    def seed(self, seed: int) -> RunDirectory:
        """Return the run directory of a seed's groups."""
        return RunDirectory(self.root / "seeds" / str(seed))

    def first_outputs(self, seed: int, n: int) -> Path:
        """Return the path of the store of a seed's groups with their first n outputs."""
        return self.seed(seed).root / f"first-{n}"

    def pairs(self, seed: int) -> Path:
        """Return the path of the store of a seed's human pairs, dealt out over the rounds."""
        return self.seed(seed).root / "pairs"

    def prior_outcomes(self, seed: int) -> Path:
        """Return the path of the prior's outcomes: one row per test prompt, as Arrow IPC."""
        return self.seed(seed).root / "outcomes.arrow"

    def prior_examination(self, seed: int) -> Path:
        """Return the path of the prior's examination; written last, so that it marks the seed's groups as complete."""
        return self.seed(seed).root / "examination.json"

    def run(self, name: str) -> RunDirectory:
        """Return the run directory of a training run."""
        return RunDirectory(self.root / "cells" / name)

    def outcomes(self, name: str) -> Path:
        """Return the path of a training run's outcomes: one row per test prompt, as Arrow IPC."""
        return self.run(name).root / "outcomes.arrow"

    def tested_outcomes(self, name: str, version: int) -> Path:
        """Return the path of the outcomes of a version that is not the run's best, as Arrow IPC."""
        return self.run(name).root / "tested" / f"{version}.arrow"

    def tested(self, name: str, version: int) -> Path:
        """Return the path of the version's `Result` on test prompts; written after its outcomes."""
        return self.run(name).root / "tested" / f"{version}.json"

    def examination(self, name: str) -> Path:
        """Return the path of the examination of a run's best version; written last, so that it marks the run's end."""
        return self.run(name).root / "examination.json"


def check_comparison(directory: ComparisonDirectory, recipe: Recipe) -> None:
    """Refuse a directory that holds another recipe's comparison, or something else.

    Other methods, seeds, learning rates or group sizes do not make another comparison: they add runs to it.

    Raises:
        UserError: settings differ (one line for each), or compare.yaml cannot be read.
    """
    root = directory.root
    if not is_in_use(root, directory.config, "comparison", "name a new or empty directory with --out"):
        return
    stored = _stored_recipe(directory).model_dump(mode="json")
    differing = [
        line
        for line in differing_settings(stored, recipe.model_dump(mode="json"))
        if line.split(":")[0] not in _OF_EACH_RUN
    ]
    if differing:
        lines = "\n".join(f"  {line}" for line in differing)
        raise UserError(
            f"{root} holds a comparison of another recipe, whose runs cannot be compared with this one's; choose "
            f"another directory with --out, or undo the difference:\n{lines}"
        )


def _stored_recipe(directory: ComparisonDirectory) -> Recipe:
    try:
        return load_recipe(directory.config)
    except UserError as error:
        problem = str(error).splitlines()[0].rstrip(".")
        for called in (f"{directory.config} ", f"{directory.config.name}: "):
            problem = problem.removeprefix(called)
        raise UserError(
            f"{directory.config} does not hold the recipe of a comparison ({problem}); restore the file, or choose "
            f"another directory with --out."
        ) from None


def save_comparison(directory: ComparisonDirectory, recipe: Recipe, inputs: Mapping[str, str | None]) -> None:
    """Save the recipe and the inputs that later starts must find unchanged; add inputs that are new.

    Raises:
        UserError: the comparison was started on other inputs, or inputs.json cannot be read.
    """
    if not directory.facts.exists():
        write_file(directory.config, dump_yaml(recipe.model_dump(mode="json")))
        write_file(directory.facts, json.dumps(inputs, indent=1))
    begun = _begun_on(directory)
    for name, value in inputs.items():
        if name in begun and begun[name] != value:
            raise UserError(
                f"{directory.root} was started with the {name} {begun.get(name)}, which is now {value}: the data or "
                f"the way it is prepared has changed; restore it, or choose another directory with --out."
            )
    if not begun.keys() >= inputs.keys():
        write_file(directory.facts, json.dumps({**begun, **inputs}, indent=1))


def _begun_on(directory: ComparisonDirectory) -> dict[str, str | None]:
    try:
        begun = json.loads(directory.facts.read_text(encoding="utf-8"))
    except ValueError:
        begun = None
    if not isinstance(begun, dict):
        raise UserError(
            f"{directory.facts} does not hold the inputs of a comparison; restore the file, or choose another "
            f"directory with --out."
        )
    return begun
