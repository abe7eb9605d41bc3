"""Where a run's parts lie, so that they are found from any current directory."""

import json
from pathlib import Path
from typing import Any

from brain_align.common.config.recipe import Recipe
from brain_align.deploy.run.directory import RunDirectory, own_store_uri, resolve_output, run_directory, saved_recipe


def with_absolute_places(recipe: Recipe) -> Recipe:
    """The recipe with places that are found from any current directory, as the saved configuration must name them.

    They are operational settings: what a run learns does not depend on where it lies.
    """
    changes: dict[str, Any] = {"run": recipe.run.model_copy(update={"dir": str(run_directory(recipe).root)})}
    uri = recipe.store.uri
    if uri is not None and "://" not in uri:
        absolute = own_store_uri(recipe) or str(Path(uri).expanduser().absolute())
        changes["store"] = recipe.store.model_copy(update={"uri": absolute})
    if recipe.prepare is not None:
        cache = str(resolve_output(recipe.prepare.cache))
        changes["prepare"] = recipe.prepare.model_copy(update={"cache": cache})
    return recipe.model_copy(update=changes)


def begun_world(directory: RunDirectory, recipe: Recipe) -> Path | None:
    """The prepared world that a run was begun with, where it is still in the cache and a recipe asks for the same.

    Args:
        directory: of the run, which need not exist.
        recipe: with the cache; its raw data need not be there any more.
    """
    if recipe.prepare is None or not directory.facts.exists():
        return None
    saved = saved_recipe(directory)
    if saved.prepare is None or _asked_world(saved) != _asked_world(recipe):
        return None
    name = json.loads(directory.facts.read_text())["world"]
    caches = (recipe.prepare.cache, saved.prepare.cache)
    worlds = (resolve_output(cache) / name for cache in caches)
    return next((world for world in worlds if world.is_dir()), None)


def _asked_world(recipe: Recipe) -> tuple[object, ...]:
    assert recipe.prepare is not None
    return recipe.prepare.kind, recipe.prepare.seed, recipe.data.path
