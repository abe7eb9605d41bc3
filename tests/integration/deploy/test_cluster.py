import socket

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.schemas import PRIOR
from brain_align.deploy.services.cluster import ray_cluster, required_resources
from tests.unit.factories import recipe_settings


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    recipe = Recipe.model_validate(recipe_settings(ray={"address": f"127.0.0.1:{port}"}))
    with pytest.raises(UserError, match=f"No Ray cluster answers at 127.0.0.1:{port}"), ray_cluster(recipe.ray, {}):
        pass


def test_what_the_services_reserve_is_summed_over_replicas() -> None:
    recipe = Recipe.model_validate(
        recipe_settings(sampler={"replicas": 3, "cpus": 2, "gpus": 1}, learner={"cpus": 0.5, "ranks": 2, "gpus": 1})
    )
    everyone = required_resources(recipe, [PRIOR, "reward"])
    assert everyone == {"CPU": 3 * 2 + 1 + 2 * 0.5 + 1, "GPU": 3 + 2}
    assert required_resources(recipe, []) == {"CPU": 3 * 2 + 2 * 0.5, "GPU": 3 + 2}
    assert required_resources(recipe, list(recipe.scorers), scoring_only=True) == {"CPU": 1, "GPU": 0}
