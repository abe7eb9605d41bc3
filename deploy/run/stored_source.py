"""What the store commands are pointed at: a store's URI, its directory, or the directory of its run."""

from dataclasses import dataclass
from pathlib import Path

from brain_align.common.config.objective_sections import BrainSection, GoodnessSection
from brain_align.common.config.recipe import Recipe
from brain_align.common.config.scorers import CombinationSection
from brain_align.common.errors import UserError, first_line
from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.common.store.files.backends import shown
from brain_align.common.store.overlay import OverlaidStore, Store
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import run_directory


@dataclass(frozen=True)
class Location:
    """Where a store lies.

    Attributes:
        uri: of the store's own files, as it was named.
        directory: of its run; None where only the store was named.
        recipe: of the run, with `{world}` as it was written; None also where it is not one of this version.
        problem: why there is no recipe, where the run has one.
    """

    uri: str
    directory: RunDirectory | None = None
    recipe: Recipe | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        """The URI as messages may show it."""
        return shown(self.uri)


@dataclass(frozen=True)
class Source:
    """An opened store and where it lies.

    Attributes:
        store: opened for reading only; over the store that it trains from, where its run samples nothing.
        location: of the store itself.
    """

    store: Store
    location: Location

    @property
    def directory(self) -> RunDirectory | None:
        """Of the store's run, where it is known."""
        return self.location.directory

    @property
    def recipe(self) -> Recipe | None:
        """Of the store's run, where it is known."""
        return self.location.recipe


def locate(place: str) -> Location:
    """Find the store that `place` names.

    Args:
        place: a URI (with `://`), a store directory (with `store.json`, or with `groups` where that was lost), or a run
            directory (with `config.yaml`).

    Raises:
        UserError: there is nothing, or something else.
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
    """The store of a run; runs of older versions keep theirs readable though their recipe may not be."""
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
    """Open the store that `place` names, see `locate`.

    Raises:
        UserError: there is none, or one that cannot be read.
    """
    location = locate(place)
    own = SampleStore(location.uri, None, read_only=True)
    recipe = location.recipe
    if recipe is None or recipe.sampler.replicas:
        return Source(own, location)
    assert recipe.store.uri, "a recipe without samplers has it"
    return Source(OverlaidStore(own, open_source(recipe.store.uri).store, recipe.algorithm.rounds), location)


@dataclass(frozen=True)
class Ranking:
    """What the outputs of a group are ranked by.

    Attributes:
        name: of a scorer, or of a reward that a recipe makes of several.
        reward: the scorer's name, or how the values of several make one.
    """

    name: str
    reward: str | CombinationSection

    @property
    def scorers(self) -> list[str]:
        """Whose values it needs."""
        return [self.reward] if isinstance(self.reward, str) else list(self.reward.weights)


def ranking(source: Source, wanted: str | None) -> Ranking:
    """The scorer or reward that ranks: the one asked for, the run's objective's, or the only one there is.

    Raises:
        UserError: its values are not in the store, or several scorers' are and none is named.
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
    return objective if isinstance(objective, GoodnessSection) else BrainSection(temperature=objective.temperature)


def _listed(scorers: list[str]) -> str:
    return f"values of {', '.join(scorers)}" if scorers else "no rewards"
