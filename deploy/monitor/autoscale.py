"""Autoscaling: the number of samplers, decided from the load of the last window. Pure."""

from dataclasses import dataclass

from brain_align.common.config.sampling import AutoscaleSection


@dataclass(frozen=True)
class Load:
    """The load of one window."""

    samplers: int  # replicas, those that are not ready included
    starting: int  # replicas whose engine is starting
    without_room: int  # replicas that wait for room in the cluster
    waited: float  # the share of the window that the learner spent waiting for groups
    waiting_requests: int  # the most requests that no sampler had taken yet
    ready_groups: int  # groups that are scored and not trained yet
    trained: int  # groups that were trained in the window
    # sampling and training take turns. Ready groups then do not show how many samplers are needed: while the learner
    # trains, all groups of the round are ready.
    strict: bool


@dataclass(frozen=True)
class Decision:
    """A number of samplers, and the reason for it."""

    samplers: int
    reason: str


def decide(load: Load, settings: AutoscaleSection, since_change: float) -> Decision | None:
    """Return the new number of samplers and its reason; None: no change.

    To keep the number from swinging, up and down have different criteria, which are far apart, and after a change
    nothing is decided until it has taken effect. `since_change`: seconds since the number last changed.
    """
    if not settings.min <= load.samplers <= settings.max:
        nearest = min(max(load.samplers, settings.min), settings.max)
        return Decision(nearest, f"autoscale allows {settings.min} to {settings.max}")
    if load.starting or since_change < settings.settle:
        return None
    if load.waited >= settings.up_when_waiting and load.waiting_requests and not load.without_room:
        more = min(load.samplers + max(1, load.samplers // 4), settings.max, load.samplers + load.waiting_requests)
        waited = (
            f"the learner waited {load.waited:.0%} of the time while {load.waiting_requests} requests had no sampler"
        )
        return Decision(more, waited) if more > load.samplers else None
    ahead = settings.down_when_ahead * load.trained
    if not load.strict and load.waited < settings.up_when_waiting / 2 and load.trained and load.ready_groups >= ahead:
        fewer = max(load.samplers - 1, settings.min)
        reason = f"{load.ready_groups} groups are ready, and the learner trains {load.trained} in {settings.window:g} s"
        return Decision(fewer, reason) if fewer < load.samplers else None
    return None
