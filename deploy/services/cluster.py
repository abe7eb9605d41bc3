"""The Ray cluster of a run: the one in its recipe, that of the surrounding Ray job, or one that it starts."""

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run import RaySection
from brain_align.common.errors import UserError, first_line
from brain_align.deploy.services.make_services import Service
from brain_align.deploy.services.reachable import check_reachable
from brain_align.deploy.services.room import can_grow, check_each_fits

_LOG = logging.getLogger(__name__)
LOWER_SERVICES = "lower their replicas, cpus or gpus"
"""The remedy where a cluster is too small."""


@contextmanager
def ray_cluster(
    settings: RaySection,
    needs: Mapping[str, float],
    remedy: str = LOWER_SERVICES,
    services: Mapping[str, Service] | None = None,
) -> Iterator[Mapping[str, float]]:
    """Connect to the cluster of the settings or of the surrounding Ray job, else start one on this machine.

    A cluster started here offers as many logical cores as the services reserve: on a small machine they share the real
    cores instead of waiting for each other for ever. It ends with the block, which gets the cluster's amount of each
    resource. `needs`: see `required_resources`; `remedy`: what the user can do, besides adding nodes, if too small;
    `services`: whose actors must each fit on a node.

    Raises:
        UserError: the cluster cannot be reached, or is too small for the services (named with the amounts).
    """
    address = settings.address or os.environ.get("RAY_ADDRESS")
    check_reachable(address)
    cores = math.ceil(needs["CPU"]) + (os.cpu_count() or 1)  # this machine's: for replicas that are added later
    own = {} if address else {"num_cpus": settings.num_cpus or cores, "include_dashboard": False}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's new default; silences its warning
    ray_worker.print_to_stdstream = _log
    try:
        with _own_signal_handlers():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError, RayError) as error:
        place = address or "a local one"
        raise UserError(
            f"Cannot start or reach the Ray cluster ({place}): {first_line(error)}; check ray.address."
        ) from None
    try:
        offers = ray.cluster_resources()
        if not can_grow():
            _check_capacity(needs, offers, remedy)
        check_each_fits(services or {})
        yield offers
    finally:
        ray.shutdown()


def _log(data: Mapping[str, Any], **_options: object) -> None:
    """Log Ray's pages on lost processes, which it would print on stdout: a run says itself, in a line, what it lost."""
    _LOG.info("Ray: %s", "\n".join(data["lines"]))


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Take back what SIGTERM does: Ray would end the process in the middle of everything, and abort it."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere Ray cannot have set any
            signal.signal(signal.SIGTERM, handler)


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
