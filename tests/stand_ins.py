"""Services in this process, for what is tested without Ray: they do what a test tells them, and can be killed."""

import asyncio
import io
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import PipelineError, UserError
from brain_align.common.requests import Prompt, SampleRequest
from brain_align.common.schemas import GROUPS, PRIOR, batch_from_rows
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.actors.actor import CallFailedError, LostError, Spawn
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.conductor.conductor import Conductor
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.monitor.run_monitor import RunMonitor
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.run.trackers.open_trackers import Trackers
from brain_align.deploy.schedule.evaluation import Evaluation
from brain_align.deploy.schedule.quarantine import Quarantine
from brain_align.deploy.schedule.request_plan import RequestPlan
from brain_align.deploy.schedule.round_prompts import DrawnPrompts, TrainingRequests
from brain_align.deploy.schedule.rounds import Rounds
from brain_align.deploy.services.services import LearnerGroup, Services
from brain_align.learner.step_report import StepReport
from brain_align.sampler.reports import Heartbeat
from tests.unit.factories import group, recipe_settings, scores


class LocalActor:
    """A `Handle` whose methods are its own; what it is doing when it is killed raises."""

    def __init__(self) -> None:
        self._dead = asyncio.Event()

    async def placed(self) -> None: ...

    async def ready(self) -> Any: ...

    async def call(self, method: str, *args: Any) -> Any:
        self._check()
        try:
            return await getattr(self, method)(*args)
        except (UserError, PipelineError) as error:
            raise CallFailedError(error) from error

    async def stream(self, method: str, *args: Any) -> AsyncGenerator[Any]:
        self._check()
        try:
            async for item in getattr(self, method)(*args):
                yield item
        except (UserError, PipelineError) as error:
            raise CallFailedError(error) from error

    def kill(self) -> None:
        self._dead.set()

    async def work(self, seconds: float) -> None:
        """Take so long, unless it is killed meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._dead.wait()
        self._check()

    def _check(self) -> None:
        if self._dead.is_set():
            raise LostError("killed")


class LocalSampler(LocalActor):
    """Makes up a group for each prompt, one after the other, `seconds` each."""

    def __init__(self, name: str = "sampler", seconds: float = 0.0) -> None:
        super().__init__()
        self.name, self.seconds = name, seconds

    async def generate(self, request: SampleRequest) -> AsyncGenerator[pa.RecordBatch]:
        for group_id, prompt in zip(request.group_ids, request.prompts, strict=True):
            await self.sample(prompt)
            yield made_up(request, group_id, prompt, self.name)

    async def sample(self, prompt: Prompt) -> None:
        """Where a test puts trouble."""
        await self.work(self.seconds)

    async def heartbeat(self) -> Heartbeat:
        return Heartbeat(0, 0, 0, 0, 0.0)


class LocalScorer(LocalActor):
    """Gives every output of a group its place, `seconds` a call."""

    def __init__(self, name: str, seconds: float = 0.0) -> None:
        super().__init__()
        self.name, self.seconds = name, seconds

    async def ready(self) -> dict[str, str]:
        return {"name": self.name, "digest": "digest"}

    async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        await self.work(self.seconds)
        return scores(self.name, {name: [1.0, 2.0] for name in groups["group_id"].to_pylist()})


def made_up(request: SampleRequest, group_id: str, prompt: Prompt, sampler: str) -> pa.RecordBatch:
    row = group(
        group_id,
        prompt_id=prompt.prompt_id,
        round=request.round,
        proposal_version=request.version,
        lease_id=request.lease_id,
        seed=request.seed,
        sampler_id=sampler,
    )
    return batch_from_rows(GROUPS, [row])


class LocalLearner(LearnerGroup):
    """A learner's ranks, `seconds` per step."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.busy_seconds = 0.0

    async def start(self) -> int:
        return 0

    async def train_step(self, step: int, batch: pa.RecordBatch) -> StepReport:
        await asyncio.sleep(self.seconds)
        self.busy_seconds += self.seconds
        return StepReport({"loss": 1.0, "tokens": 10.0, "trained_prompts": float(batch.num_rows)}, notes=[])

    async def save(self, step: int, *, keep: Sequence[int]) -> None: ...

    async def publish(self, version: int, step: int) -> None: ...

    def kill(self) -> None: ...


class Simulation:
    """A run of the real control plane over a real store, with services that a test makes up.

    Args:
        root: gets everything that the run writes.
        algorithm: of the recipe.
        samplers, scorers: (how many, how to make one); of scorers by name.
        learner: stands in for the ranks.
        evaluated: held-back prompts; 0: nothing is evaluated.
        recipe: further sections of it.
        samplers_settings: of the pool of samplers.

    Attributes:
        rounds_an_epoch: how many draw all prompts; None: no prompt is drawn twice.
    """

    rounds_an_epoch: int | None = None

    def __init__(
        self,
        root: Path,
        algorithm: dict[str, Any],
        samplers: tuple[int, Spawn],
        scorers: dict[str, tuple[int, Spawn]],
        learner: LocalLearner | None = None,
        *,
        evaluated: int = 0,
        recipe: dict[str, Any] | None = None,
        samplers_settings: PoolSettings | None = None,
    ) -> None:
        self.directory = RunDirectory(root)
        names = {name: {"kind": "tldr", "path": "reward"} for name in scorers if name != PRIOR}
        settings = recipe_settings(**{"algorithm": algorithm, "scorers": names, **(recipe or {})})
        self.recipe = Recipe.model_validate(settings)
        section = self.recipe.algorithm
        count = (self.rounds_an_epoch or section.rounds) * section.prompts_per_round
        self.prompts = [Prompt(f"p{number}", "text", (1,), "gold") for number in range(count)]
        plan = RequestPlan("run", 0, self.recipe.sampler.lease_prompts, self.directory.policies)
        round_prompts = DrawnPrompts(section, self.prompts, 0)
        self.store = SampleStore(root / "store", "run")
        held_back = [Prompt(f"e{n}", "text", (1,), "gold") for n in range(evaluated)]
        self.evaluation = Evaluation(
            self.recipe,
            SampleStore(root / "evaluation", "run"),
            plan,
            {"validation": held_back, "test": held_back},
            list(scorers),
        )
        self.work = RunPlan(
            store=self.store,
            schedule=Rounds(section, round_prompts, 0),
            training_scorers=list(scorers),
            started_scorers=list(scorers),
            requests=TrainingRequests(section, round_prompts, plan, n=2, fixed=False),
            evaluation=self.evaluation if evaluated else None,
            quarantine=Quarantine(self.directory.quarantine),
        )
        replicas, spawn = samplers
        self.services = Services(
            Pool("sampler", replicas, spawn, self.directory.log, samplers_settings or PoolSettings(start=60, slots=2)),
            {
                name: Pool(f"scorer-{name}", number, make, self.directory.log, PoolSettings(start=60, backoff=0.01))
                for name, (number, make) in scorers.items()
            },
            learner or LocalLearner(),
        )
        self.said = io.StringIO()
        console = PlainConsole(file=self.said, width=1000)
        self.tracker = Tracker(self.recipe, self.directory.metrics, Trackers([]), console)
        self.conductor = Conductor(self.recipe, self.work, self.tracker, self.services)

    async def run(self) -> None:
        """To the end, with its status and what is asked of it."""
        groups = self.conductor.groups
        operations = RunMonitor(self.recipe, self.directory, self.work, groups, self.services, self.tracker)
        try:
            with self.store.training():
                async with operations:
                    await self.conductor.run()
        finally:
            self.services.kill()
            self.tracker.close()

    def run_here(self) -> None:
        """As `run`, in an event loop of its own."""
        asyncio.run(asyncio.wait_for(self.run(), 60))

    def trained(self) -> list[str]:
        """The groups of all steps, as the store has them on disk."""
        rows = SampleStore(self.directory.own_store, "run", read_only=True).steps()
        return [group for row in rows for group in row["group_ids"]]


def reward_and_prior(seconds: float = 0.0, count: int = 1) -> dict[str, tuple[int, Spawn]]:
    """Two scorers that do what they should."""
    return {
        PRIOR: (count, lambda _name, _log: LocalScorer(PRIOR, seconds)),
        "reward": (count, lambda _name, _log: LocalScorer("reward", seconds)),
    }
