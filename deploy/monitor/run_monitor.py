"""The work beside the algorithm while a run is alive: its status, requests to it, and autoscaling."""

import asyncio
import contextlib
import logging
import time
from dataclasses import asdict
from types import TracebackType
from typing import Self

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.system.processes import this_process
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.actors.replica import State as ReplicaState
from brain_align.deploy.conductor.group_pipeline import GroupPipeline
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.monitor.requests import answer, forget_former_requests, take_requests
from brain_align.deploy.monitor.scaling import Load, Scaler
from brain_align.deploy.monitor.status import Backlog, LeftOut, PoolStatus, ReplicaStatus, State, Status, write_status
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.services.services import Services

_EVERY = 1.0  # seconds
_SHOWN = 64  # replicas per pool, those in trouble first, and quarantined items
_LOG = logging.getLogger(__name__)


class RunMonitor:
    """Writes the run's status and answers requests, every second until its block ends."""

    def __init__(
        self,
        recipe: Recipe,
        directory: RunDirectory,
        plan: RunPlan,
        groups: GroupPipeline,
        services: Services,
        tracker: Tracker,
    ) -> None:
        self._directory = directory
        self._plan = plan
        self._groups = groups
        self._services = services
        self._tracker = tracker
        self._autoscale = recipe.sampler.autoscale
        self._scaler = Scaler(services.pools, self._autoscale)
        self._process = this_process()
        self._started_at = time.time()
        self._strict = recipe.algorithm.strict
        self._window = (time.monotonic(), 0.0, 0)  # when it began; seconds waited and groups trained by then
        self._most_waiting = 0  # requests, in the window
        self._store_waits_since: float | None = None
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None]
        for pool in services.pools.values():
            pool.tell = tracker.say
        services.learner.tell = tracker.say

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(forget_former_requests, self._directory)
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        await self._task  # it finishes its writing before the last status is written
        last = self._status("ended")
        if isinstance(error, Exception):  # neither the end nor an interruption
            last = last.model_copy(update={"state": "failed", "failure": str(error)})
        await asyncio.to_thread(write_status, self._directory, last)

    async def _run(self) -> None:
        while not self._ended.is_set():
            try:
                await self._look_after()
            except (OSError, UserError) as error:
                _LOG.warning("The run's status could not be written, or requests to it could not be read: %s", error)
            except Exception:  # noqa: BLE001 - the run does not depend on it, and the next second may be better
                _LOG.exception("The run's status was not written, or a request to it was not answered")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY):
                    await self._ended.wait()

    async def _look_after(self) -> None:
        self._follow_load()
        self._follow_store()
        status = self._status("running" if self._tracker.is_running else "starting")
        await asyncio.to_thread(write_status, self._directory, status)
        for name, request in await asyncio.to_thread(take_requests, self._directory):
            given = self._scaler.answer(request)
            self._tracker.say(*given.lines)
            await asyncio.to_thread(answer, self._directory, name, given)

    # -- automatic scaling -------------------------------------------------------------------------------------------

    def _follow_load(self) -> None:
        began, waited, trained = self._window
        self._most_waiting = max(self._most_waiting, self._groups.waiting_requests)
        elapsed = time.monotonic() - began
        if self._autoscale is None or not self._tracker.is_running or elapsed < self._autoscale.window:
            return
        load = Load(
            samplers=self._services.samplers.target,
            starting=self._services.samplers.count(ReplicaState.STARTING),
            without_room=self._services.samplers.count(ReplicaState.WAITING),
            waited=(self._groups.waited_seconds - waited) / elapsed,
            waiting_requests=self._most_waiting,
            ready_groups=self._plan.schedule.backlog,
            trained=self._tracker.trained - trained,
            strict=self._strict,
        )
        self._most_waiting = 0
        self._window = time.monotonic(), self._groups.waited_seconds, self._tracker.trained
        scaling = self._scaler.follow(load)
        if scaling is not None:
            self._tracker.say(f"samplers: {scaling.before} -> {scaling.after}: {scaling.reason}")

    def _follow_store(self) -> None:
        trouble, since = self._plan.store_trouble, self._store_waits_since
        if trouble is not None and since is None:
            self._store_waits_since = time.monotonic()
            self._tracker.say(f"The sample store does not answer and is asked again: {trouble}")
        elif trouble is None and since is not None:
            self._store_waits_since = None
            self._tracker.say(f"The sample store answers again, after {time.monotonic() - since:.0f} s.")

    # -- the status --------------------------------------------------------------------------------------------------

    def _status(self, state: State) -> Status:
        return Status(
            state=state,
            host=self._process.host,
            pid=self._process.pid,
            process=self._process,
            started_at=self._started_at,
            progress=self._tracker.progress(),
            backlog=Backlog(
                leases=self._groups.waiting_requests,
                unscored=self._groups.scoring.waiting,
                ready=self._plan.schedule.backlog,
            ),
            services={name: _pool_status(pool) for name, pool in self._services.pools.items() if pool.elastic},
            learner=self._services.learner.trouble or self._services.learner.state,
            automatic=self._scaler.automatic,
            scaling=list(self._scaler.decisions),
            away=self._groups.scoring.away,
            warnings=self._tracker.warnings,
            store_trouble=self._plan.store_trouble,
            quarantined=[LeftOut(**asdict(item)) for item in self._plan.quarantine][-_SHOWN:],
        )


def _pool_status(pool: Pool) -> PoolStatus:
    first = sorted(pool.replicas.values(), key=lambda replica: replica.state == "ready")  # stable: trouble first
    replicas = [ReplicaStatus.model_validate(replica, from_attributes=True) for replica in first[:_SHOWN]]
    return PoolStatus(target=pool.target, ready=pool.ready, replicas=replicas)
