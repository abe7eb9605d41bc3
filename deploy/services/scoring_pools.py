"""Scorers without a run, for the commands that score."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from brain_align.common.config.recipe import Recipe
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.run.directory import RunDirectory


@contextmanager
def scoring_pools(
    recipe: Recipe, names: Sequence[str], logs: RunDirectory, *, room_for_run: bool = False
) -> Iterator[dict[str, Pool]]:
    """Yield pools of some of a recipe's scorers, by name, not yet started; they end with the block.

    The recipe is resolved, with its prepared data; `logs` gets the log files. With `room_for_run` the cluster must have
    room for the samplers and the learner, too.

    Raises:
        UserError: the cluster cannot be reached, or is too small.
    """
    from brain_align.deploy.services.cluster import ray_cluster, required_resources, started_services
    from brain_align.deploy.services.make_services import scorer_pool  # Ray: not for what is refused before

    needs = required_resources(recipe, names, scoring_only=not room_for_run)
    services = started_services(recipe, names, scoring_only=not room_for_run)
    with ray_cluster(recipe.ray, needs, services=services):
        pools = {name: scorer_pool(name, recipe, logs) for name in names}
        try:
            yield pools
        finally:
            for pool in pools.values():
                pool.kill()
