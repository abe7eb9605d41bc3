"""The numbers of replicas of a live run, as the recipe, the user or the load decides."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from brain_align.common.config.sampling import AutoscaleSection
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.monitor.requests import Answer, ScaleRequest
from brain_align.deploy.monitor.status import Scaling

MOST_REPLICAS = 4096
SAMPLERS = "samplers"
_REMEMBERED = 20


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


class Scaler:
    """Changes the size of pools, which have the names that users know, and remembers why."""

    def __init__(self, pools: Mapping[str, Pool], settings: AutoscaleSection | None) -> None:
        self.decisions: deque[Scaling] = deque(maxlen=_REMEMBERED)
        self._pools = {name: pool for name, pool in pools.items() if pool.elastic}
        self.automatic = settings is not None and SAMPLERS in self._pools
        self._settings = settings
        self._changed_at = time.monotonic()

    def answer(self, request: ScaleRequest | None) -> Answer:
        """Do what was asked: all of it or nothing."""
        if request is None:
            return Answer(refusal="The request cannot be understood: it comes from another version of brain.")
        for name, count in request.replicas.items():
            if refusal := self._refusal(name, count):
                return Answer(refusal=refusal)
        return Answer(lines=[self._obey(name, count) for name, count in request.replicas.items()])

    def follow(self, load: Load) -> Scaling | None:
        """Let the load decide, where autoscaling is on; returns the change, if any."""
        if self._settings is None or not self.automatic:
            return None
        decision = decide(load, self._settings, time.monotonic() - self._changed_at)
        return None if decision is None else self._scale(SAMPLERS, decision.samplers, decision.reason)

    def _refusal(self, name: str, count: int | None) -> str | None:
        if name not in self._pools:
            return f"This run has no {name} to scale; it has {', '.join(self._pools) or 'none'}."
        if count is None and (name != SAMPLERS or self._settings is None):
            return f"{name}=auto needs sampler.autoscale in the recipe, and works for samplers only."
        if count is not None and not 1 <= count <= MOST_REPLICAS:
            return f"{name}={count} is out of bounds; it must be from 1 to {MOST_REPLICAS}."
        return None

    def _obey(self, name: str, count: int | None) -> str:
        if name == SAMPLERS:
            self.automatic = count is None
        if count is None:
            return f"{name}: autoscaled, starting from {self._pools[name].target}"
        before = self._pools[name].target
        if count == before:
            return f"{name}: {before}, unchanged"
        self._scale(name, count, "brain scale")
        key = "sampler.replicas" if name == SAMPLERS else f"{name}.replicas"
        return f"{name}: {before} -> {count}, until this start of the run ends (set {key}={count} to keep it)"

    def _scale(self, name: str, count: int, reason: str) -> Scaling:
        pool = self._pools[name]
        scaling = Scaling(at=time.time(), service=name, before=pool.target, after=count, reason=reason)
        pool.scale(count)
        self.decisions.append(scaling)
        self._changed_at = time.monotonic()
        return scaling


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
