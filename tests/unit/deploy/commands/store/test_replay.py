from pathlib import Path

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.store.overlay import OverlaidStore
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.cli import main
from brain_align.deploy.commands.store.replay import replay_recipe
from brain_align.deploy.run.directory import RunDirectory, check_config
from brain_align.deploy.run.stored_source import open_source
from brain_align.deploy.run.yaml_text import dump_yaml
from tests.unit.factories import groups, recipe_settings, scores, step
from tests.unit.stored_runs import stored_run


def test_a_replay_has_the_run_s_recipe_but_for_where_its_groups_come_from(tmp_path: Path) -> None:
    directory = stored_run(tmp_path)
    recipe = replay_recipe(str(directory), tmp_path / "new", ["learner.learning_rate=0.5"])
    assert recipe.objective.temperature == 0.5  # the run's
    assert recipe.learner.learning_rate == 0.5
    assert (recipe.run.dir, recipe.sampler.replicas) == (str(tmp_path / "new"), 0)
    assert (recipe.store.uri, recipe.store.replay) == (str(directory), True)


@pytest.mark.parametrize("override", ["sampling.n=4", "seed=1", "algorithm.rounds=2", "policy.dtype=float32"])
def test_what_would_not_be_a_replay_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match=r"only objective\.\* and learner\.\* .* can differ; for anything else"):
        replay_recipe(str(stored_run(tmp_path)), tmp_path / "new", [override])


def test_a_bare_store_has_no_recipe_to_replay(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a store without its run's recipe; name the run directory"):
        replay_recipe(str(stored_run(tmp_path) / "store"), tmp_path / "new", [])


def test_overrides_may_stand_before_and_after_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, output = str(stored_run(tmp_path)), str(tmp_path / "new")
    for arguments in ([run, "seed=1", "--output", output], [run, "--output", output, "--seed=1"]):
        assert main(["store", "replay", *arguments]) == 2
        assert "'seed=1': a replay trains the steps as they were sampled" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["store", "replay", run, "--output", output, "--sed"])
    assert (
        "brain store replay: --sed is not an option; settings are written as section.setting=value"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampler": {"replicas": 0}}, "sampler.replicas=0 samples nothing"),
        (
            {"store": {"uri": "x", "replay": True}},
            "store.replay trains the recorded steps of a store; set sampler.replicas=0",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Recipe.model_validate(recipe_settings(**changes))


def test_a_run_directory_stays_what_it_is(tmp_path: Path) -> None:
    """`brain run RECIPE sampler.replicas=0 store.uri=…` on a directory in which that recipe has sampled."""
    directory = RunDirectory(stored_run(tmp_path))
    stored = {"sampler": {"replicas": 0}, "store": {"uri": "elsewhere"}, "objective": {"temperature": 0.5}}
    with pytest.raises(UserError, match=r"holds a run that samples its own groups.*choose another run\.dir"):
        check_config(directory, Recipe.model_validate(recipe_settings(**stored)))


def test_a_run_that_trained_from_another_store_shows_the_groups_of_both(tmp_path: Path) -> None:
    source = stored_run(tmp_path)
    directory = tmp_path / "trained"
    directory.mkdir()
    settings = recipe_settings(sampler={"replicas": 0}, store={"uri": str(source)}, algorithm={"rounds": 1})
    recipe = Recipe.model_validate(settings)
    (directory / "config.yaml").write_text(dump_yaml(recipe.model_dump(mode="json")))
    own = SampleStore(directory / "store", "own")
    with own.training():
        own.append_step(step(1, ["ab02"]))
    own.append_scores(scores("truth", {"ab02": [1.0] * 4}))
    store = open_source(str(directory)).store
    assert store.index()["group_id"].to_pylist() == ["aa01", "ab02"]  # the recipe's one round
    assert store.unscored("reward") == [] and store.unscored("truth") == ["aa01"]
    assert store.scores(["ab02", "aa01"], "prior")["group_id"].to_pylist() == ["ab02", "aa01"]
    assert [row["group_ids"] for row in store.steps()] == [["ab02"]]
    assert store.recorded_after(0) == {1: ["ab02"]}
    assert [batch["group_id"].to_pylist() for batch in store.batches()] == [["aa01", "ab02"]]


def test_rows_from_both_stores_come_in_the_order_asked_for(tmp_path: Path) -> None:
    lower, upper = SampleStore(tmp_path / "lower", "lower"), SampleStore(tmp_path / "upper", "upper")
    lower.append_groups(groups("a", "b", "c"))
    lower.append_scores(scores("reward", {name: [0.0, 0.0] for name in "ac"}))
    upper.append_scores(scores("reward", {"b": [1.0, 1.0]}))
    both = OverlaidStore(upper, lower, rounds=1)
    assert both.scores(["c", "b", "a"], "reward")["group_id"].to_pylist() == ["c", "b", "a"]
    assert both.unscored("reward") == []
    assert both.counts() == {"groups": 3, "scores": 3, "steps": 0}
