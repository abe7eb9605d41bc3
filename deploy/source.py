"""What the store commands are pointed at: a store's URI, its directory, or the directory of its run."""

from dataclasses import dataclass
from pathlib import Path

from common.config.recipe import Recipe
from common.errors import UserError
from common.schemas import PRIOR, PROPOSAL
from common.storage.places import shown
from common.store import SampleStore
from deploy.recipe_files import load_recipe
from deploy.run_directory import RunDirectory, own_store_uri
from deploy.run_store import OverlaidStore, StoredSamples


@dataclass(frozen=True)
class Location:
    """Where a store lies.

    Attributes:
        uri: of the store's own files, as it was named.
        directory: of its run; None where only the store was named.
        recipe: of the run, with `{world}` as it was written.
    """

    uri: str
    directory: RunDirectory | None = None
    recipe: Recipe | None = None

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

    store: StoredSamples
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
        recipe = load_recipe(config)
        directory = RunDirectory(path, own_store_uri(recipe))
        return Location(str(directory.store), directory, recipe)
    if (path / "store.json").is_file() or (path / "groups").is_dir():
        return Location(str(path))
    raise UserError(
        f"{path} is neither a run directory (it has no config.yaml) nor a sample store (it has no store.json); name "
        f"one of these, or a store's URI."
    )


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


def ranking_scorer(source: Source, wanted: str | None) -> str:
    """The scorer whose values are the rewards: the one asked for, the run's objective's, or the only one there is.

    Raises:
        UserError: it is not in the store, or several are and none is named.
    """
    there = sorted({facts.name for facts in source.store.scorers()} - {PRIOR, PROPOSAL})
    name = wanted or (source.recipe and source.recipe.objective.reward)
    if name is None and len(there) == 1:
        return there[0]
    if name is None:
        raise UserError(f"The store {source.store.root} has {_listed(there)}; say which ranks, with --scorer NAME.")
    if name not in there:
        raise UserError(f"The store {source.store.root} has no values of {name!r}, it has {_listed(there)}.")
    return name


def _listed(scorers: list[str]) -> str:
    return f"values of {', '.join(scorers)}" if scorers else "no rewards"
