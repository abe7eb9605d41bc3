"""A scorer that is away is waited for, and told from a text that has no value."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from brain_align.common.config.run import TimeoutsSection
from brain_align.common.errors import PipelineError, ScorerAwayError
from brain_align.common.schemas import SCORES, batch_from_rows
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.conductor import availability
from brain_align.deploy.conductor.background import background_tasks
from brain_align.deploy.conductor.group_scorer import GroupScorer
from brain_align.deploy.run.directory import RunDirectory
from tests.stand_ins import LocalActor
from tests.unit.factories import groups

Answer = Callable[[str, int], float | Exception | None]
"""From a group and how many calls there were before, its values, or the error."""


class Service(LocalActor):
    """Gives groups values as a test says, or says as scorers do that it is away."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.calls: list[list[str]] = []
        self._answer = answer

    async def ready(self) -> dict[str, str]:
        return {"name": "reward", "digest": "digest"}

    async def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        ids = batch["group_id"].to_pylist()
        self.calls.append(ids)
        found = {name: self._answer(name, len(self.calls) - 1) for name in ids}
        rows = [
            {
                "group_id": name,
                "scorer": "reward",
                "scorer_digest": "digest",
                "values": [None if isinstance(value, Exception) else value] * 2,
                "gold_value": None,
                "error": None if isinstance(value, float) else str(value or "no number"),
                "scored_at": 0.0,
            }
            for name, value in found.items()
        ]
        scores = batch_from_rows(SCORES, rows)
        away = frozenset(name for name, value in found.items() if isinstance(value, Exception))
        if away:
            raise ScorerAwayError(str(found[min(away)]), scores, away)
        return scores


def scored(
    folder: Path, names: Sequence[str], answer: Answer, *, together: int = 4, outage: float = 5.0
) -> tuple[dict[str, tuple[list[float | None], str | None]], Service, list[str]]:
    """Score groups; returns the values and error of each, the service, and what the user was told."""
    service, said = Service(answer), list[str]()

    async def score() -> pa.RecordBatch:
        pool = Pool("scorer-reward", 1, lambda _name, _log: service, RunDirectory(folder).log, PoolSettings(start=5))
        await pool.start()
        async with background_tasks() as begin:
            limits = TimeoutsSection(outage=outage, lease=5)
            return await GroupScorer("reward", pool, together, limits, begin, said.append).score(groups(*names))

    rows = asyncio.run(asyncio.wait_for(score(), 20)).to_pylist()
    return {row["group_id"]: (row["values"], row["error"]) for row in rows}, service, said


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_FIRST_PAUSE", 0.01)


DOWN = ConnectionError("connection refused")


def test_an_outage_is_waited_for_and_leaves_no_null(tmp_path: Path) -> None:
    names = [f"g{number}" for number in range(40)]
    found, service, said = scored(tmp_path, names, lambda _, before: DOWN if 1 <= before < 12 else 1.0, together=2)
    assert set(map(str, found.values())) == {"([1.0, 1.0], None)"}
    assert len(said) == 2
    assert "gives no values at present: connection refused" in said[0]
    assert "gives values again" in said[1]
    assert len(service.calls) < 50  # few are tried in vain


def test_one_poisonous_text_is_told_from_an_outage(tmp_path: Path) -> None:
    found, _, said = scored(tmp_path, "abcdefgh", lambda name, _: ValueError("odd text") if name == "c" else 2.0)
    assert found.pop("c") == ([None, None], "odd text")
    assert {str(row) for row in found.values()} == {"([2.0, 2.0], None)"}
    assert said == []  # nobody was away


def test_a_poisonous_text_that_comes_first_is_told_from_an_outage(tmp_path: Path) -> None:
    found, _, _ = scored(tmp_path, "abc", lambda name, _: ValueError("odd") if name == "a" else 2.0, together=1)
    assert found == {"a": ([None, None], "odd"), "b": ([2.0, 2.0], None), "c": ([2.0, 2.0], None)}


@pytest.mark.parametrize("value", [DOWN, None])  # also a service that answers null, when its token has expired
def test_a_scorer_that_stays_away_ends_the_work_with_its_own_error(tmp_path: Path, value: Exception | None) -> None:
    with pytest.raises(
        PipelineError, match=r"'reward' has given no values for 0.2 s \(timeouts.outage\): .*(refused|no number)"
    ):
        scored(tmp_path, "abcdefgh", lambda _name, before: 1.0 if before < 1 else value, outage=0.2)


def test_a_scorer_that_never_gave_a_value_ends_the_work_too(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="connection refused"):
        scored(tmp_path, "ab", lambda *_: DOWN, outage=0.1)


def test_a_text_that_rightly_has_no_value_is_asked_for_again_alone(tmp_path: Path) -> None:
    found, service, said = scored(tmp_path, "abcd", lambda name, _: None if name == "b" else 1.0)
    assert found["b"] == ([None, None], "no number")
    assert len(service.calls) == 5  # all; twice the one alone, and each time one that had a value
    assert said == []
