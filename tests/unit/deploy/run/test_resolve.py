from pathlib import Path

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import recipe_digest
from brain_align.common.errors import UserError
from brain_align.deploy.run.directory import save_config, saved_recipe
from brain_align.deploy.run.resolve import output_path, placed, resolve, run_directory
from tests.unit.factories import recipe_settings


def test_outputs_of_a_ray_job_do_not_go_into_its_throwaway_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert output_path("runs/x") == Path.cwd() / "runs/x"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("BRAIN_HOME", str(tmp_path))
    assert output_path("runs/x") == tmp_path / "runs/x"
    assert output_path("/abs/x") == Path("/abs/x")
    for run, cache, wanted in (
        ("/shared/runs/x", "build/worlds", "/shared/runs/build/worlds"),  # every node that sees the run sees its data
        ("runs/x", "build/worlds", f"{tmp_path}/runs/build/worlds"),
        ("/shared/runs/x", "/tasks", "/tasks"),
    ):
        recipe = Recipe.model_validate(recipe_settings(prepare={"kind": "demo", "cache": cache}, run={"dir": run}))
        assert (saved := placed(recipe)).prepare is not None and saved.prepare.cache == wanted
        assert placed(saved) == saved


# -- found from any current directory


def prepared(**changes: object) -> Recipe:
    settings = recipe_settings(prepare={"kind": "hh", "cache": "worlds"}, run={"dir": "runs/{name}"}, **changes)
    settings["data"] = settings["data"] | {"path": "raw"}
    return Recipe.model_validate(settings)


def test_saved_places_are_absolute_and_change_no_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = prepared(store={"uri": "elsewhere"})
    saved = placed(recipe)
    assert saved.prepare is not None
    places = (saved.run.dir, saved.store.uri, saved.prepare.cache)
    assert places == tuple(str(tmp_path / place) for place in ("runs/test", "elsewhere", "worlds"))
    assert recipe_digest(saved) == recipe_digest(recipe)
    assert placed(saved) == saved
    for uri in ("s3://bucket/store", None):
        assert placed(prepared(store={"uri": uri})).store.uri == uri
    source = placed(prepared(store={"uri": "runs/other"}, sampler={"replicas": 0}))
    assert source.store.uri == str(tmp_path / "runs/other")


def test_a_run_knows_its_prepared_data_wherever_it_is_asked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = placed(prepared(policy={"model": "{world}/policy"}))
    directory = run_directory(recipe)
    with pytest.raises(UserError, match="start the run again, which prepares it"):  # not begun
        resolve(recipe, None, begun=directory)
    save_config(directory, recipe, {"world": "hh-123"})
    with pytest.raises(UserError, match=r"run.* is not in .*worlds any more"):  # not there
        resolve(recipe, None, begun=directory)
    world = tmp_path / "worlds" / "hh-123"
    world.mkdir(parents=True)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    for asked in (saved_recipe(directory), prepared(policy={"model": "{world}/policy"})):  # the latter's cache: away
        resolved = resolve(asked, None, begun=directory)
        assert resolved.world == world and resolved.facts() == {"world": "hh-123"}
        assert resolved.recipe.policy.model == f"{world}/policy"
        assert resolved.saved.policy.model == "{world}/policy"
        assert resolved.run_id == recipe_digest(recipe)
    settings = recipe_settings(prepare={"kind": "hh", "seed": 1}, data=saved_recipe(directory).data.model_dump())
    with pytest.raises(UserError, match="is not in"):  # asks for other data
        resolve(Recipe.model_validate(settings), None, begun=directory)
    assert resolve(Recipe.model_validate(recipe_settings()), None, begun=directory).world is None


def test_a_derived_recipe_has_the_same_prepared_data_and_an_identity_of_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = placed(prepared(policy={"model": "{world}/policy"}))
    directory = run_directory(recipe)
    save_config(directory, recipe, {"world": "hh-123"})
    (tmp_path / "worlds" / "hh-123").mkdir(parents=True)
    base = resolve(recipe, None, begun=directory)
    derived = base.derived(recipe.model_copy(update={"seed": 7}))
    assert derived.recipe.policy.model == base.recipe.policy.model
    assert derived.run_id != base.run_id
