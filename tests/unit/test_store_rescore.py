import asyncio
from contextlib import nullcontext
from unittest import mock

import pyarrow as pa
import pytest

from common.config.recipe import Recipe
from common.errors import PipelineError, UserError
from common.schemas import SCORES
from common.store import SampleStore
from deploy.cli import main
from deploy.store_commands import rescore as rescore_command
from deploy.store_commands.rescore import score_missing
from tests.unit.factories import groups, recipe_settings, scores

DEMO = "deploy/recipes/demo.yaml"
RECIPE = Recipe.model_validate(recipe_settings(sampler={"lease_prompts": 2}))


class StandInPool:
    """Scores 1 and 2, and fails at a call."""

    def __init__(self, digest="new", fails_at=None):
        self.digest, self.fails_at = digest, fails_at
        self.calls: list[list[str]] = []

    async def start(self):
        pass

    async def call(self, method, batch, *, timeout):
        assert method == "score"
        self.calls.append(batch["group_id"].to_pylist())
        if len(self.calls) == self.fails_at:
            raise PipelineError("the scorer is gone")
        found = scores("reward", {name: [1.0, 2.0] for name in self.calls[-1]})
        digests = pa.array([self.digest] * found.num_rows)
        return found.set_column(SCORES.get_field_index("scorer_digest"), SCORES.field("scorer_digest"), digests)


@pytest.fixture
def store(tmp_path):
    store = SampleStore(tmp_path, "run")
    store.append_groups(groups("a", "b", "c"))
    store.append_groups(groups("d", "e"))
    return store


def rescore(store, pool):
    done: list[int] = []
    asyncio.run(score_missing(store, "reward", store.unscored("reward"), pool, RECIPE, done.append))
    return sum(done)


def test_only_what_lacks_values_is_scored_in_leases(store):
    store.append_scores(scores("reward", {"b": [0.0, 0.0]}))
    pool = StandInPool(digest=store.scorers()[0].digest)
    assert rescore(store, pool) == 4
    assert sorted(pool.calls) == [["a", "c"], ["d", "e"]]
    assert store.unscored("reward") == []
    assert store.scores(["b"], "reward")["values"].to_pylist() == [[0.0, 0.0]]


def test_what_was_committed_before_a_failure_stays_and_the_rest_follows(store, tmp_path):
    with pytest.raises(PipelineError, match="the scorer is gone"):
        rescore(store, StandInPool(fails_at=2))
    again = SampleStore(tmp_path, "run")
    left = again.unscored("reward")
    assert 0 < len(left) < 5
    assert rescore(again, StandInPool()) == len(left)


def test_values_of_another_scorer_are_not_mixed_with_these(store):
    store.append_scores(scores("reward", {"b": [0.0, 0.0]}))
    with pytest.raises(
        UserError, match=r"values of another scorer under the name 'reward' .*give this scorer a name of its own"
    ):
        rescore(store, StandInPool(digest="other"))
    assert len(store.unscored("reward")) == 4


@pytest.mark.parametrize("digest", ["the same", "other"])
def test_a_store_that_lacks_nothing_is_not_taken_for_another_scorers(store, tmp_path, capsys, digest):
    there = scores("reward", {name: [1.0, 2.0] for name in "abcde"})
    store.append_scores(there)
    pool = StandInPool(digest=there["scorer_digest"][0].as_py() if digest == "the same" else digest)
    with (
        mock.patch.object(rescore_command, "scoring_pools", return_value=nullcontext({"reward": pool})),
        mock.patch.object(rescore_command, "resolved_for_scoring", return_value=RECIPE),
    ):
        status = main(["store", "rescore", str(tmp_path), "--recipe", DEMO, "--scorer", "reward"])
    said = capsys.readouterr()
    assert pool.calls == [["a"]]
    if digest == "the same":
        assert status == 0 and "values for 5 groups, 0 of them new" in said.out
    else:
        assert status == 2 and "values of another scorer under the name 'reward'" in said.err


def test_values_that_another_opening_appended_meanwhile_are_not_mixed_with_these(store, tmp_path):
    SampleStore(tmp_path, "run").append_scores(scores("reward", {"b": [0.0, 0.0]}))
    with pytest.raises(UserError, match="values of another scorer under the name 'reward'"):
        rescore(store, StandInPool(digest="other"))


def test_a_scorer_that_the_recipe_lacks_and_a_store_without_a_recipe_are_refused(store, tmp_path, capsys):
    assert main(["store", "rescore", str(tmp_path), "--scorer", "second"]) == 2
    assert "Say --recipe, or name the run directory" in capsys.readouterr().err
    assert main(["store", "rescore", str(tmp_path), "--recipe", DEMO, "--scorer", "second"]) == 2
    assert "second is no scorer of the recipe, which has reward" in capsys.readouterr().err
