from pathlib import Path

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.policies import PolicyRegistry
from brain_align.deploy.commands.export import export
from brain_align.deploy.evaluate.candidates import candidate, parse
from brain_align.deploy.evaluate.settings import evaluation_recipe
from tests.unit.deploy.commands.test_export import a_run, recipe_of
from tests.unit.factories import recipe_settings


def test_directories_are_told_apart_by_what_they_hold(tmp_path):
    for name, file in (("run", "config.yaml"), ("adapter", "adapter_config.json"), ("model", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
        assert parse(str(tmp_path / name)).kind == name
    found = parse(f"{tmp_path}/run@3")
    assert (found.kind, found.place, found.version) == ("run", str(tmp_path / "run"), "3")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("empty", "neither a run .* nor an adapter .* nor a model"),
        ("file", "is a file"),
        ("model@3", "is not a run directory, so that it has no versions"),
        ("./nowhere", "does not exist"),
    ],
)
def test_what_is_nothing_is_refused_in_a_sentence(tmp_path, monkeypatch, what, says):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    Path("model").mkdir()
    Path("model/config.json").touch()
    with pytest.raises(UserError, match=says) as refusal:
        parse(what)
    assert "\n" not in str(refusal.value)


def test_a_run_has_its_versions(tmp_path):
    directory, _ = a_run(tmp_path)
    recipe = evaluation_recipe(recipe_of(tmp_path, {}))
    found = candidate(parse(f"{directory.root}@1"), recipe, tmp_path / "published")
    assert (found.label, found.published.version, found.published.step) == (f"{directory.root}@1", 1, 5)
    assert found.policies == directory.policies
    assert candidate(parse(f"{directory.root}@newest"), recipe, tmp_path / "published").label == found.label
    with pytest.raises(UserError, match=r"@7: the run in .* has versions 0 to 1"):
        candidate(parse(f"{directory.root}@7"), recipe, tmp_path / "published")
    with pytest.raises(UserError, match="has not ended, so no version is the best yet; name one"):
        candidate(parse(str(directory.root)), recipe, tmp_path / "published")


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_is_published_with_a_probe_of_its_own(tmp_path, merge):
    directory, _ = a_run(tmp_path)
    export(directory.root, "1", tmp_path / "out", merge=merge)
    recipe = evaluation_recipe(recipe_of(tmp_path, {}))
    found = candidate(parse(str(tmp_path / "out")), recipe, tmp_path / "published")
    assert found.kind == ("model" if merge else "adapter")
    assert found.recipe.policy.method == ("full" if merge else "lora")
    base = candidate(parse(str(tmp_path / "model")), recipe, tmp_path / "published")
    assert found.published.probe.logprobs != base.published.probe.logprobs  # it was trained
    assert PolicyRegistry(found.policies).verify(0).digest == found.published.digest
    again = candidate(parse(str(tmp_path / "out")), recipe, tmp_path / "published")
    assert again.published.path == found.published.path


def test_exports_of_both_kinds_have_the_same_probe(tmp_path):
    directory, _ = a_run(tmp_path)
    recipe = evaluation_recipe(recipe_of(tmp_path, {}))
    for merge in (False, True):
        export(directory.root, "1", tmp_path / f"out-{merge}", merge=merge)
    adapter, model = (
        candidate(parse(str(tmp_path / f"out-{merge}")), recipe, tmp_path / "published") for merge in (False, True)
    )
    assert adapter.published.probe.logprobs == pytest.approx(model.published.probe.logprobs, abs=1e-4)


def test_a_recipe_that_trains_from_a_store_samples_when_it_is_evaluated():
    recipe = Recipe.model_validate(
        recipe_settings(
            sampler={"replicas": 0},
            store={"uri": "elsewhere", "replay": True},
            algorithm={"max_staleness": 2},
            objective={"name": "dpo", "reward": "human"},
        )
    )
    found = evaluation_recipe(recipe)
    assert (found.sampler.replicas, found.store.uri, found.algorithm.strict) == (1, None, True)
    assert found.objective.reward == "reward"
