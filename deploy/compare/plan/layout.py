"""The directory of a comparison: what lies where, and whether it belongs to this recipe."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import differing_settings
from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.deploy.run.directory import RunDirectory, is_in_use
from brain_align.deploy.run.recipe_files import dump_yaml, load_recipe

_OF_EACH_RUN = ("seed", "objective.name", "learner.learning_rate")
"""What the base recipe says of these is not used: each run has its own."""


@dataclass(frozen=True)
class ComparisonDirectory:
    """The layout below a comparison's root.

    seeds/N is the run directory of the groups that all runs of seed N begin with; cells/NAME that of one run;
    services/ holds logs and golden values of what the runs share.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The recipe that is compared on."""
        return self.root / "compare.yaml"

    @property
    def facts(self) -> Path:
        """What identifies its inputs."""
        return self.root / "inputs.json"

    @property
    def request(self) -> Path:
        """What was asked for so far."""
        return self.root / "request.json"

    @property
    def services(self) -> RunDirectory:
        """Of the services that all runs share."""
        return RunDirectory(self.root / "services")

    def seed(self, seed: int) -> RunDirectory:
        """Of the groups of a seed."""
        return RunDirectory(self.root / "seeds" / str(seed))

    def first_outputs(self, seed: int, n: int) -> Path:
        """The store of a seed's groups with their first n outputs."""
        return self.seed(seed).root / f"first-{n}"

    def pairs(self, seed: int) -> Path:
        """The store of human pairs, dealt out over the rounds."""
        return self.seed(seed).root / "pairs"

    def prior_outcomes(self, seed: int) -> Path:
        """One row a test prompt of the prior."""
        return self.seed(seed).root / "outcomes.arrow"

    def prior_examination(self, seed: int) -> Path:
        """What the examiner says of the prior; written last, so that it marks the end of the seed's sampling."""
        return self.seed(seed).root / "examination.json"

    def run(self, name: str) -> RunDirectory:
        """Of one run."""
        return RunDirectory(self.root / "cells" / name)

    def outcomes(self, name: str) -> Path:
        """One row a test prompt of a finished run, as Arrow IPC."""
        return self.run(name).root / "outcomes.arrow"

    def examination(self, name: str) -> Path:
        """What the examiner says of a finished run's best version; written last, so that it marks the run's end."""
        return self.run(name).root / "examination.json"

    @property
    def results(self) -> Path:
        """All figures."""
        return self.root / "compare.json"

    @property
    def tables(self) -> Path:
        """All tables as Markdown."""
        return self.root / "compare.md"

    @property
    def page(self) -> Path:
        """All tables and plots, in one file."""
        return self.root / "compare.html"

    @property
    def plots(self) -> Path:
        """The plots as PNG and SVG."""
        return self.root / "plots"


def check_comparison(directory: ComparisonDirectory, recipe: Recipe) -> None:
    """Refuse a directory that holds another recipe's comparison, or something else.

    Other methods, seeds, learning rates or group sizes are no other comparison: they add runs to it.

    Raises:
        UserError: with one line for each setting that differs, or compare.yaml cannot be read.
    """
    root = directory.root
    if not is_in_use(root, directory.config, "comparison", "name a new or empty directory with --out"):
        return
    there = _compared_on(directory).model_dump(mode="json")
    differing = [
        line
        for line in differing_settings(there, recipe.model_dump(mode="json"))
        if line.split(":")[0] not in _OF_EACH_RUN
    ]
    if differing:
        lines = "\n".join(f"  {line}" for line in differing)
        raise UserError(
            f"{root} holds a comparison on another recipe, whose runs cannot be compared with this one's; name "
            f"another directory with --out, or undo the difference:\n{lines}"
        )


def _compared_on(directory: ComparisonDirectory) -> Recipe:
    """The recipe that a comparison was begun on."""
    try:
        return load_recipe(directory.config)
    except UserError as error:
        problem = str(error).splitlines()[0].rstrip(".")
        for called in (f"{directory.config} ", f"{directory.config.name}: "):
            problem = problem.removeprefix(called)
        raise UserError(
            f"{directory.config} does not hold the recipe of a comparison ({problem}); restore the file, or name "
            f"another directory with --out."
        ) from None


def save_comparison(directory: ComparisonDirectory, recipe: Recipe, inputs: Mapping[str, str | None]) -> None:
    """Save what later starts must find the same; an input that no start before had is added.

    Raises:
        UserError: the comparison was begun on other inputs, or inputs.json does not say on which.
    """
    if not directory.facts.exists():
        write_file(directory.config, dump_yaml(recipe.model_dump(mode="json")))
        write_file(directory.facts, json.dumps(inputs, indent=1))
    begun = _begun_on(directory)
    for name, value in inputs.items():
        if name in begun and begun[name] != value:
            raise UserError(
                f"{directory.root} was begun with the {name} {begun.get(name)}, which is now {value}: the data or the "
                f"way it is prepared has changed; restore it, or name another directory with --out."
            )
    if not begun.keys() >= inputs.keys():
        write_file(directory.facts, json.dumps({**begun, **inputs}, indent=1))


def _begun_on(directory: ComparisonDirectory) -> dict[str, str | None]:
    try:
        begun = json.loads(directory.facts.read_text())
    except ValueError:
        begun = None
    if not isinstance(begun, dict):
        raise UserError(
            f"{directory.facts} does not say what the comparison was begun on; restore the file, or name another "
            f"directory with --out."
        )
    return begun
