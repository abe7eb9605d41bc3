"""Stores as users name them: by a URI, by their directory, or by the directory of their run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from brain_align.common.config.objective_sections import BrainSection, GoodnessSection
from brain_align.common.config.recipe import Recipe
from brain_align.common.config.scorers import CombinationSection
from brain_align.common.errors import UserError, first_line
from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.common.store.overlay import OverlaidStore, Store
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.uris import shown
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import run_directory

GroupLogprobs = Callable[[pa.RecordBatch], list[list[float | None]]]
"""GROUPS rows to log q_θ(y|x) of each output of each group; None where the model cannot read an output."""


@dataclass(frozen=True)
class Location:
    """The place of a store, and its run where that is known."""

    uri: str  # of the store's own files, as it was named
    directory: RunDirectory | None = None  # the run's; None where only the store was named
    recipe: Recipe | None = None  # the run's, with `{world}` as it was written; None also where it cannot be read
    problem: str | None = None  # why the run's recipe cannot be read

    @property
    def name(self) -> str:
        """The URI as messages may show it."""
        return shown(self.uri)


@dataclass(frozen=True)
class Source:
    """A store that is opened for reading."""

    store: Store  # over the store that its run trains from, where the run samples nothing
    location: Location

    @property
    def directory(self) -> RunDirectory | None:
        """The directory of the store's run, where it is known."""
        return self.location.directory

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of the store's run, where it is known."""
        return self.location.recipe


def locate(place: str) -> Location:
    """Find the store that a URI (with `://`), a run directory or a store directory names.

    A run directory has `config.yaml`; a store directory has `store.json`, or at least `groups`; the rest is refused.
    """
    if "://" in place:
        return Location(place)
    path = Path(place).expanduser().absolute()
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; name a run directory, a store directory, or a store's URI.")
    config = RunDirectory(path).config
    if config.is_file():
        return _of_run(path, config)
    if (path / "store.json").is_file() or (path / "groups").is_dir():
        return Location(str(path))
    raise UserError(
        f"{path} is neither a run directory (it has no config.yaml) nor a sample store (it has no store.json); name "
        f"one of these, or a store's URI."
    )


def _of_run(path: Path, config: Path) -> Location:
    """Find the store of a run, also where the run is of an older version whose recipe cannot be read."""
    try:
        recipe = load_recipe(config)
    except UserError as error:
        directory = RunDirectory(path)
        if not directory.own_store.is_dir():
            raise
        problem = f"{config} is not a recipe of this version of brain-align: {first_line(error)}"
        return Location(str(directory.own_store), directory, None, problem)
    directory = run_directory(recipe, path)
    return Location(str(directory.store), directory, recipe)


def open_source(place: str) -> Source:
    """Open the store that `place` names, see `locate`; refuse one that does not exist or cannot be read."""
    location = locate(place)
    own = SampleStore(location.uri, None, read_only=True)
    recipe = location.recipe
    if recipe is None or recipe.sampler.replicas:
        return Source(own, location)
    assert recipe.store.uri, "a recipe without samplers has it"
    return Source(OverlaidStore(own, open_source(recipe.store.uri).store, recipe.algorithm.rounds), location)


@dataclass(frozen=True)
class Ranking:
    """The reward that ranks the outputs of a group."""

    name: str
    reward: str | CombinationSection  # a scorer's name, or a combination of several scorers

    @property
    def scorers(self) -> list[str]:
        """The scorers whose values it needs."""
        return [self.reward] if isinstance(self.reward, str) else list(self.reward.weights)


def ranking(source: Source, wanted: str | None) -> Ranking:
    """Return the reward that was asked for, else the one of the run's objective, else the only one in the store.

    Raises:
        UserError: its values are not in the store, or the store has several and none is named.
    """
    there = sorted({facts.name for facts in source.store.scorers()} - {PRIOR, PROPOSAL})
    name = wanted or (source.recipe and source.recipe.objective.reward)
    if name is None and len(there) != 1:
        raise UserError(
            f"The store {source.store.root} has {_listed(there)}; name one (--scorer NAME; in Python, scorer=NAME)."
        )
    name = name or there[0]
    combinations = source.recipe.rewards if source.recipe else {}
    found = Ranking(name, combinations.get(name, name))
    if missing := [scorer for scorer in found.scorers if scorer not in there]:
        raise UserError(f"The store {source.store.root} has no values of {missing[0]!r}, it has {_listed(there)}.")
    return found


def goodness_of(source: Source) -> GoodnessSection:
    """Return the goodness model of a store's run; where its objective has none, the paper's at the run's γ."""
    if source.recipe is None:
        return BrainSection()
    objective = source.recipe.objective
    if isinstance(objective, GoodnessSection):
        return objective
    truncation = objective.model_dump(include={"truncated", "truncated_penalty"})
    return BrainSection(temperature=objective.temperature, **truncation)


def _listed(scorers: list[str]) -> str:
    return f"values of {', '.join(scorers)}" if scorers else "no rewards"
