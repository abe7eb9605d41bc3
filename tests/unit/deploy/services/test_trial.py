"""Scorers are tried on texts of the data before anything is sampled."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from brain_align.common.config.scorers import FunctionSection
from brain_align.common.data.text_groups import trial_groups
from brain_align.common.errors import PipelineError, ScorerAwayError, UserError
from brain_align.common.requests import Prompt
from brain_align.deploy.actors.actor import Spawn
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.services.services import Services
from brain_align.deploy.services.trial import Trial, raise_problems, try_scorers
from brain_align.scorer.kinds.function import load_function
from tests.stand_ins import LocalActor, LocalLearner, LocalSampler
from tests.unit.factories import scores

PROMPTS = [
    Prompt(f"p{number}", f"prompt {number}", (1,), gold)
    for number, gold in enumerate((" yes", " no", None, " 42", " more"))
]


class InProcess(LocalActor):
    """A scorer of a user's function."""

    def __init__(self, function: str) -> None:
        super().__init__()
        section = FunctionSection(kind="function", function=f"{__name__}:{function}", timeout=5)
        self._scorer = load_function("mine", section)

    async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        return self._scorer.score(groups)


def tried(folder: Path, spawn: Spawn, prompts: list[Prompt] = PROMPTS) -> Trial:
    async def one() -> Trial:
        pool = Pool("mine", 1, spawn, RunDirectory(folder).log, PoolSettings(start=5, backoff=0.001))
        await pool.start()
        try:
            return (await try_scorers({"mine": pool}, trial_groups(prompts), 5))["mine"]
        finally:
            pool.kill()

    return asyncio.run(asyncio.wait_for(one(), 20))


def good(prompts: list[str], outputs: list[str]) -> list[float]:
    return [float(len(output)) for output in outputs]


def raising(prompts: list[str], outputs: list[str]) -> list[float]:
    raise ConnectionError("the grader wants a token")


def fewer(prompts: list[str], outputs: list[str]) -> list[float]:
    return [1.0]


def nan(prompts: list[str], outputs: list[str]) -> list[float]:
    return [float("nan")] * len(outputs)


def infinite(prompts: list[str], outputs: list[str]) -> list[float]:
    return [float("inf")] * len(outputs)


def scalar(prompts: list[str], outputs: list[str]) -> float:
    return 1.0


def nothing(prompts: list[str], outputs: list[str]) -> None: ...


def words(prompts: list[str], outputs: list[str]) -> list[str]:
    return ["good"] * len(outputs)


def of_one_argument(texts: list[str]) -> list[float]:
    return [1.0] * len(texts)


def picky(prompts: list[str], outputs: list[str]) -> list[float]:
    if prompts[0] == "prompt 1":
        raise ValueError("no label for this prompt")
    return good(prompts, outputs)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raising", "the function raised ConnectionError: the grader wants a token"),
        ("fewer", "the function returned 1 values for 2 outputs"),
        ("nan", "output 0 has the value nan"),
        ("infinite", "output 0 has the value inf"),
        ("scalar", "the function returned a float, not a list of numbers"),
        ("nothing", "the function returned a NoneType, not a list of numbers"),
        ("words", "the function returned 'good', which is not a number"),
        ("of_one_argument", "the function raised TypeError: .*takes 1 positional argument but 2 were given"),
    ],
)
def test_a_function_that_cannot_score_the_data_is_refused_with_its_own_error(
    tmp_path: Path, function: str, reason: str
) -> None:
    result = tried(tmp_path, lambda _name, _log: InProcess(function))
    with pytest.raises(
        UserError, match=rf"The scorer 'mine' gives no values: .*{reason}.*'prompt 0'.*same command again"
    ):
        raise_problems({"mine": result})


def test_a_function_that_scores_most_of_the_data_is_noted(tmp_path: Path) -> None:
    result = tried(tmp_path, lambda _name, _log: InProcess("picky"))
    assert result.problem is None and result.scores is not None
    assert result.note is not None and result.note.startswith("has no value for 2 of 8 outputs that it was tried on: ")
    assert "no label for this prompt (tried on the prompt 'prompt 1')" in result.note
    fine = tried(tmp_path, lambda _name, _log: InProcess("good"))
    assert (fine.problem, fine.note) == (None, None)


class Deadly(LocalActor):
    """Dies of one prompt."""

    async def score(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        if "trial-1" in groups["group_id"].to_pylist():
            self.kill()
        await self.work(0.0)
        return scores("mine", {name: [1.0, 2.0] for name in groups["group_id"].to_pylist()})


def test_one_deadly_text_of_the_data_is_no_reason_to_refuse_a_scorer(tmp_path: Path) -> None:
    result = tried(tmp_path, lambda _name, _log: Deadly())
    assert result.problem is None and result.groups is not None
    assert result.groups["group_id"].to_pylist() == ["trial-0", "trial-2", "trial-3"]


def test_texts_are_references_of_the_data_where_there_are_any() -> None:
    rows = trial_groups(PROMPTS).to_pylist()
    assert [(row["prompt_text"], row["gold_text"]) for row in rows] == [
        ("prompt 0", " yes"),
        ("prompt 1", " no"),
        ("prompt 2", None),
        ("prompt 3", " 42"),
    ]
    assert [[output["text"] for output in row["outputs"]] for row in rows[:3]] == [
        [" yes", " no"],
        [" no", " yes"],
        [" yes", " no"],
    ]
    (row,) = trial_groups([Prompt("p", "a prompt", (1,), None)]).to_pylist()
    assert len({output["text"] for output in row["outputs"]}) == 2


class Away(LocalActor):
    """A replica that finds its service away whenever it starts, but for the first times."""

    starts = 0

    def __init__(self, up: int) -> None:
        super().__init__()
        Away.starts += 1
        self._up = Away.starts <= up

    async def ready(self) -> Any:
        if not self._up:
            raise ScorerAwayError("scorers.mine returns no values: connection refused")


class NeverReady(LocalSampler):
    """A sampler whose engine is still starting."""

    async def ready(self) -> Any:
        await asyncio.Event().wait()


def services(folder: Path, mine: Spawn, sampler: type[LocalSampler] = LocalSampler) -> tuple[Services, Pool]:
    def pool(name: str, spawn: Spawn) -> Pool:
        return Pool(name, 1, spawn, RunDirectory(folder).log, PoolSettings(start=5, backoff=0.001))

    samplers = pool("sampler", lambda name, _log: sampler(name))
    return Services(samplers, {"mine": pool("scorer-mine", mine)}, LocalLearner()), samplers


@pytest.mark.parametrize(
    ("mine", "reason"),
    [
        (lambda _name, _log: InProcess("raising"), "'mine' gives no values: the function raised"),
        (lambda _name, _log: Away(up=0), "scorers.mine returns no values: connection refused"),
    ],
)
def test_a_scorer_of_no_use_is_reported_while_samplers_still_start(tmp_path: Path, mine: Spawn, reason: str) -> None:
    async def start() -> int:
        subject, samplers = services(tmp_path, mine, NeverReady)
        try:
            with pytest.raises(UserError, match=reason):
                await subject.start_pools(trial_groups(PROMPTS), 5)
            return samplers.ready
        finally:
            subject.kill()

    assert asyncio.run(asyncio.wait_for(start(), 20)) == 0


def test_a_replica_that_restarts_during_an_outage_is_not_given_up(tmp_path: Path) -> None:
    async def outlive() -> None:
        Away.starts = 0
        subject, _ = services(tmp_path, lambda _name, _log: Away(up=1))
        pool = subject.scorers["mine"]
        await pool.start()
        (replica,) = pool.replicas.values()
        async with pool.slot() as slot:
            slot.replica.actor.kill()
            with pytest.raises(PipelineError):
                await slot.call("score", None, timeout=5)
        while Away.starts < 6:  # more than the starts after which a replica is given up
            await asyncio.sleep(0.01)
        assert replica.starts_failed == 0
        pool.raise_failure()
        subject.kill()

    asyncio.run(asyncio.wait_for(outlive(), 20))
