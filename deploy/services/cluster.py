"""The Ray cluster of a run: the one in its recipe, that of the surrounding Ray job, or one that it starts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run import RaySection
from brain_align.common.errors import UserError
from brain_align.deploy.services.make_services import Service
from brain_align.deploy.services.ray_start import RayStart
from brain_align.deploy.services.room import can_grow, check_each_fits

LOWER_SERVICES = "lower their replicas, cpus or gpus"
"""The remedy where a cluster is too small."""


@contextmanager
def ray_cluster(
    settings: RaySection,
    needs: Mapping[str, float],
    remedy: str = LOWER_SERVICES,
    services: Mapping[str, Service] | None = None,
    start: RayStart | None = None,
) -> Iterator[Mapping[str, float]]:
    """Connect to the cluster of the settings or of the surrounding Ray job, else start one on this machine.

    A cluster started here ends with the block, which gets the cluster's amount of each resource. `needs`: see
    `required_resources`; `remedy`: what the user can do, besides adding nodes, if too small; `services`: whose actors
    must each fit on a node; `start`: one that may have begun; the caller ends it.

    Raises:
        UserError: the cluster cannot be reached, or is too small for the services (named with the amounts).
    """
    begun = start or RayStart(settings, needs)
    begun.wait()
    try:
        offers = ray.cluster_resources()
        if not can_grow():
            _check_capacity(needs, offers, remedy)
        check_each_fits(services or {})
        yield offers
    finally:
        if start is None:
            begun.end()


def started_services(recipe: Recipe, scorers: Sequence[str], *, scoring_only: bool = False) -> dict[str, Service]:
    """Return the sections of the named scorers and, by default, of samplers and learner, by their names in recipes."""
    services: dict[str, Service] = {name: recipe.scorer(name) for name in scorers}
    if scoring_only:
        return services
    samplers = {"sampler": recipe.sampler} if recipe.sampler.replicas else {}
    return {"learner": recipe.learner, **samplers, **services}


def required_resources(recipe: Recipe, scorers: Sequence[str], *, scoring_only: bool = False) -> dict[str, float]:
    """Return the CPUs and GPUs that the named scorers and, by default, samplers and learner reserve together."""
    services: list[tuple[int, Service]] = [(section.replicas, section) for section in map(recipe.scorer, scorers)]
    if not scoring_only:
        services += [(recipe.sampler.replicas, recipe.sampler), (recipe.learner.ranks, recipe.learner)]
    return {
        "CPU": round(sum(count * service.cpus for count, service in services), 3),
        "GPU": round(sum(count * service.gpus for count, service in services), 3),
    }


def _check_capacity(needs: Mapping[str, float], offers: Mapping[str, float], remedy: str) -> None:
    short = [
        f"{need:g} {name} (it has {offers.get(name, 0):g})"
        for name, need in needs.items()
        if need > offers.get(name, 0)
    ]
    if short:
        raise UserError(
            f"The Ray cluster is too small: the services of this recipe reserve {' and '.join(short)}; {remedy}, or "
            f"add nodes."
        )
