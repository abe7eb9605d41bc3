"""The two lanes of a run's groups: those of training, and those of the evaluation of published versions."""

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import PipelineError
from brain_align.common.requests import Purpose, SampleRequest
from brain_align.common.store.commit_queue import CommitQueue
from brain_align.common.store.overlay import Store
from brain_align.deploy.conductor.availability import has_values
from brain_align.deploy.conductor.background import Begin
from brain_align.deploy.conductor.scoring import Scoring
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.conductor.waiting_groups import Lane, Pending, Samples
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.schedule.evaluation import Evaluation, Split
from brain_align.deploy.schedule.quarantine import SAMPLER, Item, MissingValues
from brain_align.deploy.schedule.request_plan import RequestPlan
from brain_align.deploy.schedule.round_prompts import without_prompts


class StoreLane(Lane):
    """A lane whose groups lie in a sample store: requests in, groups that are stored and scored out."""

    name: str  # of its store's thread
    purpose: Purpose | None = None  # of all its groups; None where their requests tell
    queue: CommitQueue  # makes all calls of the store, and of what reads it; there is one while the lane is open

    def __init__(
        self, store: Store, scorers: Sequence[str], recipe: Recipe, plan: RunPlan, tracker: Tracker, pending: Pending
    ) -> None:
        self.scorers = scorers
        self.requests: deque[SampleRequest] = deque()  # those that no sampler has yet
        self._store = store
        self._recipe = recipe
        self._started = set(plan.started_scorers)
        self._quarantine = plan.quarantine
        self._missing = MissingValues()
        self._tracker = tracker
        self._pending = pending
        self._begin: Begin
        self._scoring: Scoring

    def open(self, begin: Begin, scoring: Scoring) -> None:
        """Start the store's thread; what is committed from now on goes to `scoring`."""
        self._begin, self._scoring = begin, scoring
        self.queue = CommitQueue(self._store, self.name, self._committed)

    async def close(self) -> None:
        """End the store's thread, once it has written what it was given."""
        await asyncio.to_thread(self.queue.close)

    def next_request(self) -> SampleRequest:
        """Take the request that waits longest; its prompts may all have been given up meanwhile."""
        return self.requests.popleft()

    @override
    async def append_scores(self, scorer: str, samples: Samples, scores: pa.RecordBatch) -> None:
        if scores["values"].flatten().null_count:
            self._count_missing(scorer, samples, scores)
        await self.queue.append_scores(scores)
        self._tracker.scored(scorer, samples.groups, scores)

    def _count_missing(self, scorer: str, samples: Samples, scores: pa.RecordBatch) -> None:
        columns = (*(samples.groups[name].to_pylist() for name in ("lease_id", "round")), scores["values"].to_pylist())
        for lease, round_, values, error in zip(*columns, scores["error"].to_pylist(), strict=True):
            if None in values:
                purpose = self.purpose or RequestPlan.purpose_of(lease)
                share = values.count(None) / len(values)
                self._missing.add(scorer, purpose, round_, share, self._prompts_of(purpose), error)

    @override
    def failed(self, scorer: str, sample: Samples, error: PipelineError) -> None:
        row = sample.groups.select(["lease_id", "round", "prompt_id", "group_id"]).to_pylist()[0]
        purpose = self.purpose or RequestPlan.purpose_of(row["lease_id"])
        self.give_up(Item(purpose, row["round"], row["prompt_id"], row["group_id"], scorer, str(error)))

    def _prompts_of(self, purpose: Purpose) -> int:
        """Return the number of prompts of a round of training, or of an evaluation."""
        evaluation = self._recipe.evaluation
        sizes = {"validation": evaluation.validation_prompts, "test": evaluation.test_prompts}
        return sizes.get(purpose, self._recipe.algorithm.prompts_per_round)

    def give_up(self, item: Item) -> None:
        """Go on without a prompt or a group, once that is on record; raises what `Quarantine.add` raises."""
        self._quarantine.add(item, self._prompts_of(item.purpose))
        self._tracker.quarantined(item)
        self.leave_out(item)

    @abstractmethod
    def leave_out(self, item: Item) -> None:
        """Do not wait for a prompt or group that is on record as given up."""

    def _committed(self, groups: pa.RecordBatch, rows: Sequence[int]) -> None:
        """Have groups of one commit scored: they are of several requests or parts of one, `rows` of each."""
        self._tracker.sampled(groups)
        self._scoring.put(Samples(self, groups), rows)

    async def _take_up(self, first_round: int = 0, recorded: Set[str] = frozenset()) -> tuple[pa.Table, pa.Table]:
        """Have stored groups scored that lack values; return the summary rows of all, and of those that lack none.

        Where an earlier start got null, a scorer that may have recovered is asked again: for groups of rounds from the
        first on, except those of recorded steps, which are trained again as they were.
        """
        quarantined = self._quarantine.groups

        def look() -> tuple[pa.Table, dict[str, set[str]]]:
            index = self._store.index()
            recent = set(index["group_id"].filter(pc.greater_equal(index["round"], first_round)).to_pylist())
            lacking = {name: set(self._store.unscored(name)) for name in self.scorers}
            for name in filter(self._recipe.may_recover, lacking.keys() & self._started):
                lacking[name] |= recent.intersection(self._store.own_nulls(name)["group_id"].to_pylist()) - recorded
            return index, {name: groups - quarantined for name, groups in lacking.items()}

        index, unscored = await self.queue.call(look)
        unusable = pa.array(list(quarantined.union(*unscored.values())), pa.string())
        is_unusable = pc.is_in(index["group_id"], value_set=unusable)
        lacking = [one for one in index["group_id"].filter(is_unusable).to_pylist() if one not in quarantined]
        if lacking:
            self._pending.add(lacking)
            self._begin(self._score_stored(lacking, unscored))
        return index, index.filter(pc.invert(is_unusable))

    async def _score_stored(self, groups: list[str], unscored: dict[str, set[str]]) -> None:
        """Read groups that lack scores, only as fast as they are scored."""
        batches = self._store.batches(group_ids=groups)
        rows = self._recipe.sampler.lease_prompts
        while (batch := await self.queue.call(next, batches, None)) is not None:
            for start in range(0, batch.num_rows, rows):
                await self._scoring.room()
                self._scoring.put_stored(Samples(self, batch.slice(start, rows)), unscored)


class TrainingLane(StoreLane):
    """The groups that the learner trains on; the schedule is told which of them are ready."""

    name = "store"
    purpose = "train"

    def __init__(self, recipe: Recipe, plan: RunPlan, tracker: Tracker, pending: Pending) -> None:
        super().__init__(plan.store, plan.training_scorers, recipe, plan, tracker, pending)
        self._newest = 0
        self._schedule = plan.schedule
        self._plan = plan.requests
        self._admitted = 0  # rounds whose requests have been made
        self._sampled_before: dict[int, set[str]] = {}  # by round, ids of prompts that had a group at this start
        # Those without which no output of a group can be trained on.
        self._needed = {*recipe.logprob_scorers(), *(recipe.reward_scorers() or [recipe.objective.reward])}
        self._valueless: set[tuple[str, str]] = set()  # (scorer, group) where one of these gives no value at all
        self._reason = "they have no values, or equal rewards"  # why the last one is

    async def take_up(self, round_: int, recorded: Set[str]) -> None:
        """Have stored groups scored that lack values; those that have all and may train `round_` are ready at once.

        `recorded` are the groups of recorded steps that are trained again.
        """
        for item in self._quarantine:
            if item.purpose == "train":
                self.leave_out(item)
        first = self._schedule.earliest_round(round_)
        index, complete = await self._take_up(first, recorded)
        await self.queue.call(self._find_valueless, recorded)
        self._make_ready(complete.filter(pc.greater_equal(complete["round"], first)))
        self._tracker.ready(complete.num_rows)
        for row in index.filter(pc.greater_equal(index["round"], round_)).select(["round", "prompt_id"]).to_pylist():
            self._sampled_before.setdefault(row["round"], set()).add(row["prompt_id"])

    def _find_valueless(self, recorded: Set[str]) -> None:
        for name in self._needed:
            nulls = self._store.nulls(name)
            groups = nulls["group_id"].filter(pc.equal(nulls["values"], 0)).to_pylist()
            self._valueless.update((name, group) for group in groups if group not in recorded)

    @property
    def valueless(self) -> set[str]:
        """The groups of which no output can be trained on: a scorer that is needed gives none a value."""
        return {group for _, group in self._valueless}

    def next_batch(self, step: int) -> list[str] | None:
        """Return the groups of the next step, or None while too few are ready.

        Raises:
            PipelineError: none of the groups that might train it can.
        """
        groups = self._schedule.next_batch()
        if groups is None and self._schedule.is_exhausted:
            raise PipelineError(
                f"Step {step} of round {self._schedule.round_of(step)} has nothing to train on: every group that it "
                f"could take was left out ({self._reason}). The step was not recorded, and no version was published "
                f"from it; mend the cause, then run the same command again."
            )
        return groups

    def admit(self, version: int) -> list[SampleRequest]:
        """Return the requests that may be sampled now that `version` is the newest, and could not before."""
        self._newest = version
        requests: list[SampleRequest] = []
        if self._plan is None:
            return requests
        for round_ in self._plan.admitted(version):
            if round_ >= self._admitted:
                self._admitted = round_ + 1
                given_up = self._quarantine.prompts("train", round_)
                requests += self._plan.of_round(round_, version, self._sampled_before.get(round_, set()), given_up)
        return requests

    @override
    def next_request(self) -> SampleRequest:
        """Take a request: from the newest version, and without prompts that were quarantined while it waited."""
        request = super().next_request()
        if self._plan is None:
            return request
        new = self._plan.up_to_date(request, self._newest)
        new = without_prompts(new, self._quarantine.prompts("train", request.round))  # the schedule knows of these
        if new.group_ids != request.group_ids:
            self._pending.add(new.group_ids)
            self._pending.remove(set(request.group_ids).difference(new.group_ids))
        return new

    @override
    async def append_scores(self, scorer: str, samples: Samples, scores: pa.RecordBatch) -> None:
        await super().append_scores(scorer, samples, scores)
        found = has_values(scores)
        if scorer not in self._needed or (all(found) and not self._valueless):
            return
        for group, has, error in zip(samples.ids, found, scores["error"].to_pylist(), strict=True):
            if has:
                self._valueless.discard((scorer, group))  # it may have had none before
            else:
                self._valueless.add((scorer, group))
                self._reason = f"the last one, since {scorer!r} has no values for it: {error}"

    @override
    def complete(self, samples: Samples) -> None:
        self._make_ready(samples.groups)
        self._tracker.ready(len(samples.ids))
        self._pending.remove(samples.ids)

    @override
    def leave_out(self, item: Item) -> None:
        """Train its round without it; a prompt that has brought down samplers is in no later round either."""
        last = self._recipe.algorithm.rounds if item.service == SAMPLER else item.round + 1
        for round_ in range(item.round, last):
            self._schedule.leave_out(round_, item.prompt_id, item.group_id)
        self._pending.remove([item.group_id])

    @override
    def _committed(self, groups: pa.RecordBatch, rows: Sequence[int]) -> None:
        self._tracker.stored(groups.num_rows)
        super()._committed(groups, rows)

    def _make_ready(self, groups: pa.RecordBatch | pa.Table) -> None:
        columns = (groups[name].to_pylist() for name in ("round", "prompt_id", "group_id"))
        for round_, prompt_id, group in zip(*columns, strict=True):
            if self._valueless and any((name, group) in self._valueless for name in self._needed):
                self._schedule.leave_out(round_, prompt_id, group)
            else:
                self._schedule.add(round_, prompt_id, group)


class EvaluationLane(StoreLane):
    """The groups of held-back prompts. All methods of its `Evaluation` are called on the store's thread."""

    name = "evaluation"

    def __init__(
        self, evaluation: Evaluation, recipe: Recipe, plan: RunPlan, tracker: Tracker, pending: Pending
    ) -> None:
        super().__init__(evaluation.store, evaluation.scorers, recipe, plan, tracker, pending)
        self.evaluation = evaluation
        self.evaluated: set[tuple[Split, int]] = set()  # those whose results are known

    async def take_up(self) -> None:
        """Have stored groups scored that lack values."""
        await self.queue.call(self.evaluation.leave_out, list(self._quarantine))
        await self._take_up()

    async def report(self) -> None:
        """Note and show the evaluations that have become complete."""
        for split, version, result in await self.queue.call(lambda: list(self.evaluation.newly_complete())):
            watched = split == "validation"
            outcomes = await self.queue.call(self.evaluation.outcomes, split, version) if watched else None
            self.evaluated.add((split, version))
            self._tracker.evaluated(split, version, result, outcomes)
        self._pending.remove()

    @override
    def complete(self, samples: Samples) -> None:
        self._begin(self._then_report(samples.ids, self.evaluation.scored, samples.ids))

    @override
    def leave_out(self, item: Item) -> None:
        self._begin(self._then_report([item.group_id], self.evaluation.leave_out, [item]))

    async def _then_report(self, groups: Sequence[str], function: Callable[..., None], *args: Any) -> None:
        await self.queue.call(function, *args)
        await self.report()
        self._pending.remove(groups)
