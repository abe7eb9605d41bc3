import asyncio
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import PipelineError, UserError
from brain_align.common.schemas import SCORES
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.cli import main
from brain_align.deploy.commands.store import rescore as rescore_command
from brain_align.deploy.commands.store.rescore import score_missing
from brain_align.deploy.run.directory import RunDirectory
from tests.stand_ins import LocalActor
from tests.unit.factories import groups, recipe_settings, scores

DEMO = "deploy/recipes/demo.yaml"
RECIPE = Recipe.model_validate(recipe_settings(sampler={"lease_prompts": 2}))


class Scorer(LocalActor):
    """Scores 1 and 2; dies of some groups, and raises at others; at a call there is something for the user to do."""

    def __init__(self, digest: str = "new", deadly: str = "", bad: str = "", fails_at: int | None = None) -> None:
        super().__init__()
        self.digest, self.deadly, self.bad, self.fails_at = digest, deadly, bad, fails_at
        self.calls: list[list[str]] = []

    def again(self) -> "Scorer":
        """A new life, with what the last one was asked for on record."""
        self._dead.clear()
        return self

    async def ready(self) -> dict[str, str]:
        return {"name": "reward", "digest": self.digest}

    async def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self.calls.append(batch["group_id"].to_pylist())
        if len(self.calls) == self.fails_at:
            raise UserError("the scorer is gone")
        if set(self.bad).intersection(self.calls[-1]):
            raise PipelineError("no memory")
        if set(self.deadly).intersection(self.calls[-1]):
            self.kill()
        await self.work(0.001)
        found = scores("reward", {name: [1.0, 2.0] for name in self.calls[-1]})
        digests = pa.array([self.digest] * found.num_rows)
        return found.set_column(SCORES.get_field_index("scorer_digest"), SCORES.field("scorer_digest"), digests)


@pytest.fixture
def store(tmp_path):
    store = SampleStore(tmp_path, "run")
    store.append_groups(groups("a", "b", "c"))
    store.append_groups(groups("d", "e"))
    return store


def rescore(store: SampleStore, scorer: Scorer, recipe: Recipe = RECIPE) -> int:
    done: list[int] = []

    async def with_pool() -> None:
        settings = PoolSettings(start=5, backoff=0.001)
        pool = Pool("reward", 1, lambda _name, _log: scorer.again(), RunDirectory(Path(store.root)).log, settings)
        try:
            await score_missing(store, "reward", store.unscored("reward"), pool, recipe, done.append, print)
        finally:
            pool.kill()

    asyncio.run(asyncio.wait_for(with_pool(), 20))
    return sum(done)


def test_only_what_lacks_values_is_scored_in_leases(store):
    store.append_scores(scores("reward", {"b": [0.0, 0.0]}))
    scorer = Scorer(digest=store.scorers()[0].digest)
    assert rescore(store, scorer) == 4
    assert sorted(scorer.calls[1:]) == [["a", "c"], ["d", "e"]]  # the first was a trial
    assert store.unscored("reward") == []
    assert store.scores(["b"], "reward")["values"].to_pylist() == [[0.0, 0.0]]


def test_what_was_committed_before_a_failure_stays_and_the_rest_follows(store, tmp_path):
    with pytest.raises(UserError, match="the scorer is gone"):
        rescore(store, Scorer(fails_at=3))
    again = SampleStore(tmp_path, "run")
    left = again.unscored("reward")
    assert 0 < len(left) < 5
    assert rescore(again, Scorer()) == len(left)


def test_a_group_that_keeps_killing_the_scorer_has_no_values_and_the_others_have(store):
    assert rescore(store, Scorer(deadly="b")) == 5
    assert store.unscored("reward") == []
    (row,) = store.scores(["b"], "reward").to_pylist()
    assert (row["values"], row["gold_value"], row["scorer_digest"]) == ([None, None], None, "new")
    assert "killed" in row["error"]
    assert store.scores(["a", "e"], "reward")["values"].to_pylist() == [[1.0, 2.0]] * 2


def test_where_too_many_groups_fail_nothing_is_said_of_them(tmp_path):
    store = SampleStore(tmp_path, "run")
    store.append_groups(groups(*"abcdefghij"))
    one_a_call = Recipe.model_validate(recipe_settings(sampler={"lease_prompts": 1}))
    with pytest.raises(PipelineError, match="groups failed in the scorer 'reward', so the cause is hardly"):
        rescore(store, Scorer(bad="bcdefg"), one_a_call)
    assert set("bcdefg") <= set(store.unscored("reward"))


def test_values_of_another_scorer_are_not_mixed_with_these(store):
    store.append_scores(scores("reward", {"b": [0.0, 0.0]}))
    with pytest.raises(
        UserError, match=r"values of another scorer under the name 'reward' .*score the groups under another name"
    ):
        rescore(store, Scorer(digest="other"))
    assert len(store.unscored("reward")) == 4


@pytest.mark.parametrize("digest", ["the same", "other"])
def test_a_store_that_lacks_nothing_is_not_taken_for_another_scorers(store, tmp_path, capsys, digest):
    there = scores("reward", {name: [1.0, 2.0] for name in "abcde"})
    store.append_scores(there)
    scorer = Scorer(digest=there["scorer_digest"][0].as_py() if digest == "the same" else digest)
    pool = Pool("reward", 1, lambda _name, _log: scorer.again(), RunDirectory(tmp_path).log, PoolSettings(start=5))
    with (
        mock.patch.object(rescore_command, "scoring_pools", return_value=nullcontext({"reward": pool})),
        mock.patch.object(rescore_command, "resolved_for_scoring", return_value=RECIPE),
    ):
        status = main(["store", "rescore", str(tmp_path), "--recipe", DEMO, "--scorer", "reward"])
    said = capsys.readouterr()
    assert scorer.calls == [["a"]] * 2  # one is a trial
    if digest == "the same":
        assert status == 0 and "values for 5 groups, 0 of them new" in said.out
    else:
        assert status == 2 and "values of another scorer under the name 'reward'" in said.err


def test_values_that_another_opening_appended_meanwhile_are_not_mixed_with_these(store, tmp_path):
    SampleStore(tmp_path, "run").append_scores(scores("reward", {"b": [0.0, 0.0]}))
    with pytest.raises(UserError, match="values of another scorer under the name 'reward'"):
        rescore(store, Scorer(digest="other"))


def test_a_scorer_that_the_recipe_lacks_and_a_store_without_a_recipe_are_refused(store, tmp_path, capsys):
    assert main(["store", "rescore", str(tmp_path), "--scorer", "second"]) == 2
    assert "Name a recipe with --recipe, or the run directory" in capsys.readouterr().err
    assert main(["store", "rescore", str(tmp_path), "--recipe", DEMO, "--scorer", "second"]) == 2
    assert "second does not name a scorer of the recipe, which has reward" in capsys.readouterr().err
