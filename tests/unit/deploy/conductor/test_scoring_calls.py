"""Which groups come to a scorer in one call, and what comes with them."""

import asyncio
import pickle
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from brain_align.common.config.run import TimeoutsSection
from brain_align.common.errors import PipelineError
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.conductor.scoring import Scoring
from brain_align.deploy.conductor.waiting_groups import Lane, Samples
from brain_align.deploy.run.directory import RunDirectory
from tests.stand_ins import LocalScorer
from tests.unit.factories import groups

MOST = 4


class Recording(LocalScorer):
    """Remembers its calls; the first takes a while, so that further groups wait."""

    def __init__(self) -> None:
        super().__init__("reward")
        self.calls: list[list[str]] = []
        self.sent_bytes: list[int] = []

    async def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self.calls.append(batch["group_id"].to_pylist())
        self.sent_bytes.append(len(pickle.dumps(batch)))
        if len(batch) > 1 and "fails" in self.calls[-1]:
            raise PipelineError("a group fails")
        self.seconds = 0.05 if len(self.calls) == 1 else 0.0
        return await super().score(batch)


class Heard(Lane):
    """Waits until so many groups are complete; is the store of the scores, too."""

    scorers = ("reward",)

    def __init__(self, expected: int) -> None:
        self.complete_groups: list[str] = []
        self.all = asyncio.Event()
        self._expected = expected

    def complete(self, samples: Samples) -> None:
        self.complete_groups += samples.ids
        if len(self.complete_groups) == self._expected:
            self.all.set()

    async def append_scores(self, scorer: str, samples: Samples, scores: pa.RecordBatch) -> None: ...

    def failed(self, scorer: str, sample: Samples, error: PipelineError) -> None: ...


def scorer_of(folder: Path, commits: Sequence[tuple[Sequence[str], Sequence[int]]]) -> Recording:
    """A scorer that has had a group of its own, called `first`, and then commits of groups in these pieces."""
    scorer = Recording()

    async def score() -> None:
        pool = Pool("scorer", 1, lambda _name, _log: scorer, RunDirectory(folder).log, PoolSettings(start=5))
        heard = Heard(1 + sum(len(names) for names, _ in commits))
        subject = Scoring({"reward": pool}, {"reward": MOST}, [heard], TimeoutsSection(lease=5), print)
        await pool.start()
        tasks: set[asyncio.Task[None]] = set()
        subject.start(lambda work: tasks.add(asyncio.create_task(work)))
        subject.put(Samples(heard, groups("first")))
        await asyncio.sleep(0.01)
        for names, together in commits:
            subject.put(Samples(heard, groups(*names)), together)
        await heard.all.wait()
        assert sorted(heard.complete_groups) == sorted(["first", *(name for names, _ in commits for name in names)])
        for task in tasks:
            task.cancel()

    asyncio.run(asyncio.wait_for(score(), 20))
    return scorer


@pytest.mark.parametrize(
    ("commits", "calls"),
    [
        ([("abcdef", [1] * 6)], ["abcd", "ef"]),  # single groups: as many as a call takes
        ([("ab", [1, 1]), ("c", [1]), ("de", [1, 1])], ["abcd", "e"]),  # of several commits
        ([("abcdefg", [3, 4])], ["abc", "defg"]),  # what was sampled together stays together
        ([("abcdef", [6])], ["abcd", "ef"]),  # as far as a call takes so many
        ([("abc", [3]), ("de", [1, 1])], ["abcd", "e"]),
    ],
)
def test_a_call_takes_what_waits_and_keeps_together_what_was_sampled_together(
    tmp_path: Path, commits: list[tuple[str, list[int]]], calls: list[str]
) -> None:
    assert scorer_of(tmp_path, commits).calls[1:] == [list(call) for call in calls]


@pytest.mark.parametrize("first_of_call", ["g00", "fails"])  # a call that fails is sent again in halves
def test_a_call_is_not_sent_more_than_its_own_groups(tmp_path: Path, first_of_call: str) -> None:
    names = [first_of_call, *(f"g{number:02}" for number in range(1, 100))]
    scorer = scorer_of(tmp_path, [(names, [1] * len(names))])
    for call, sent in zip(scorer.calls, scorer.sent_bytes, strict=True):
        assert sent < 1.2 * len(pickle.dumps(groups(*call)))
