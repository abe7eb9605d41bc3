"""The only step from a recipe as it was read to the one that a run works with; nothing changes it afterwards.

    load_recipe -> resolve: absolute places, prepared data -> check_inputs -> services, conductor, summary

This file alone knows what `{world}` stands for and makes relative places absolute.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run import PrepareSection
from brain_align.common.config.run_identity import recipe_digest
from brain_align.common.errors import UserError
from brain_align.deploy.run.directory import RunDirectory, saved_recipe

_WORLD = "{world}"

Report = Callable[[str], None]  # prints one line of text on what is being done


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with absolute places and with its prepared data."""

    saved: Recipe  # as config.yaml keeps it: with absolute places, and `{world}` as it was written
    recipe: Recipe  # the same with the prepared data's directory in place of `{world}`
    world: Path | None  # that directory; None where the recipe prepares nothing

    @property
    def run_id(self) -> str:
        """The digest of all settings that decide the run's result; it does not depend on where data was prepared."""
        return recipe_digest(self.saved)

    @property
    def directory(self) -> RunDirectory:
        """The directory of the recipe's run."""
        return run_directory(self.saved)

    def facts(self) -> dict[str, str | None]:
        """Return what must be the same whenever the run is resumed: the name of the prepared data."""
        return {"world": self.world.name if self.world else None}

    def derived(self, saved: Recipe) -> "ResolvedRecipe":
        """Resolve a recipe that was made of this one, on the same prepared data."""
        return with_world(saved, self.world)


def resolve(
    recipe: Recipe, report: Report | None, *, begun: RunDirectory | None = None, scorers: Iterable[str] | None = None
) -> ResolvedRecipe:
    """Make a recipe's places absolute, and prepare the data that it asks for unless that is in the cache.

    Args:
        recipe: as it was read.
        report: is told how the preparation goes; None: nothing is prepared, and missing data is an error.
        begun: a run, which need not exist, whose prepared data is used if it is of the same settings: the raw data is
            not needed then.
        scorers: the names of those scorers that alone are used; default: the whole recipe is. Where none of them lies
            in the prepared data, nothing is prepared.

    Raises:
        UserError: the data cannot be prepared, or `{world}` stands in a recipe that prepares none.
    """
    saved = placed(recipe)
    if scorers is not None and not any(_WORLD in saved.scorers[name].model_dump_json() for name in scorers):
        return ResolvedRecipe(saved, saved, None)
    world = None if begun is None else _world_of(begun, saved)
    if world is None and saved.prepare is not None:
        if report is None:
            where = f" of {begun.root}" if begun else ""
            raise UserError(
                f"The prepared data{where} is not in {saved.prepare.cache} any more; start the run again, which "
                f"prepares it."
            )
        from brain_align.deploy.worlds.build import ensure_world  # torch and transformers: only where they are needed

        world = ensure_world(saved.prepare, Path(saved.prepare.cache), saved.data.path, report)
    return with_world(saved, world)


def with_world(recipe: Recipe, world: Path | None) -> ResolvedRecipe:
    """Put the directory of the prepared data in place of `{world}`; refuse that where no data is prepared."""
    settings = _replaced(recipe.model_dump(mode="json"), world)
    return ResolvedRecipe(recipe, Recipe.model_validate(settings), world)


def _replaced(value: Any, world: Path | None) -> Any:
    if isinstance(value, str) and _WORLD in value:
        if world is None:
            raise UserError(f"{value!r} stands for prepared data, but the recipe has no `prepare` section.")
        return value.replace(_WORLD, str(world))
    if isinstance(value, Mapping):
        return {name: _replaced(inner, world) for name, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, world) for inner in value]
    return value


def _world_of(directory: RunDirectory, recipe: Recipe) -> Path | None:
    """Return the data that a run was begun with, if it is still in a cache and the recipe asks for the same."""
    if recipe.prepare is None or not directory.facts.exists():
        return None
    saved = saved_recipe(directory)
    if saved.prepare is None or _asked(saved) != _asked(recipe):
        return None
    name = json.loads(directory.facts.read_text(encoding="utf-8"))["world"]
    worlds = (output_path(cache) / name for cache in (recipe.prepare.cache, saved.prepare.cache))
    return next((world for world in worlds if world.is_dir()), None)


def _asked(recipe: Recipe) -> tuple[object, ...]:
    assert recipe.prepare is not None
    return recipe.prepare.model_dump(exclude=PrepareSection.OPERATIONAL), recipe.data.path


def output_path(path: str) -> Path:
    """Make an output path absolute: below the current directory, or, inside a Ray job, below `$BRAIN_HOME`.

    Ray deletes a job's current directory; the default of `$BRAIN_HOME` is `~/brain` on the cluster's head node.
    """
    base = Path(os.environ.get("BRAIN_HOME", "~/brain")).expanduser() if in_ray_job() else Path.cwd()
    return (base / Path(path).expanduser()).absolute()


def _cache_path(path: str, run_dir: Path) -> Path:
    """Make the cache of prepared data absolute: inside a Ray job beside the run, which all nodes must see as well."""
    return (run_dir.parent / Path(path).expanduser()).absolute() if in_ray_job() else output_path(path)


def in_ray_job() -> bool:
    """Return whether this process is the driver of a submitted Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def placed(recipe: Recipe) -> Recipe:
    """Make the places of a recipe absolute, so that they are found from any current directory.

    They are operational settings: what a run learns does not depend on where it lies.
    """
    run_dir = output_path(recipe.run.dir.replace("{name}", recipe.name))
    changes: dict[str, Any] = {"run": recipe.run.model_copy(update={"dir": str(run_dir)})}
    uri = recipe.store.uri
    if uri is not None and "://" not in uri:
        is_output = recipe.sampler.replicas > 0  # without samplers it is another run's store, which is only read
        absolute = output_path(uri) if is_output else Path(uri).expanduser().absolute()
        changes["store"] = recipe.store.model_copy(update={"uri": str(absolute)})
    if recipe.prepare is not None:
        cache = str(_cache_path(recipe.prepare.cache, run_dir))
        changes["prepare"] = recipe.prepare.model_copy(update={"cache": cache})
    return recipe.model_copy(update=changes)


def run_directory(recipe: Recipe, root: Path | None = None) -> RunDirectory:
    """Return the directory of a recipe's run, at `root` if the run has been moved, with its store elsewhere or not."""
    recipe = placed(recipe)
    own_store = recipe.store.uri if recipe.sampler.replicas else None  # without samplers, it is another run's store
    return RunDirectory(root or Path(recipe.run.dir), own_store)
