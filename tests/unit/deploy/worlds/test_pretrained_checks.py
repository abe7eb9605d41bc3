"""What is checked of a preparation from a pretrained model before, and said of it after, anything is trained."""

import json
from pathlib import Path

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.deploy.run.resolve import with_world
from brain_align.deploy.worlds.build import ensure_world
from brain_align.deploy.worlds.pretrained import training
from brain_align.deploy.worlds.pretrained.report import warnings_of
from tests.unit.pretrained_base import chat_model, dialogues, recipe_of, settings


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return chat_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(dialogues(tmp_path_factory.mktemp("data") / "pairs.jsonl"))


def silent(_):
    pass


def test_a_half_written_checkpoint_is_not_used(tmp_path):
    for step, state in ((2, json.dumps({"global_step": 2})), (4, '{"global_st')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
    assert training._newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


def test_other_settings_and_other_files_make_another_world(base, data, tmp_path, monkeypatch):
    built = []

    def build(world, *_):
        built.append(world)
        world.mkdir()

    monkeypatch.setattr("brain_align.deploy.worlds.build.build_pretrained", build)
    other = chat_model(tmp_path / "other")
    config = other / "config.json"
    config.write_text(config.read_text().replace('"use_cache": true', '"use_cache": false'))
    asked = [settings(base), settings(base, seed=1), settings(base, layers=1), settings(other)]
    names = {ensure_world(one, tmp_path / "cache", data, silent).name for one in asked}
    assert len(names) == len(built) == 4
    ensure_world(settings(base, micro_batch_tokens=99, device="cpu"), tmp_path / "cache", data, silent)
    assert len(built) == 4


def test_bad_bases_are_refused_before_anything_is_trained(base, data, tmp_path, monkeypatch):
    def refusal(source: str | Path, **changes) -> str:
        with pytest.raises(UserError) as refused:
            ensure_world(settings(source, **changes), tmp_path / "cache", data, silent)
        assert not (tmp_path / "cache").exists()
        return str(refused.value)

    assert "has no chat template, but the data" in refusal(chat_model(tmp_path / "plain", template=None))
    empty = chat_model(tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    assert "holds no weights" in refusal(empty)
    assert "does not exist" in refusal(tmp_path / "nothing")
    monkeypatch.setattr("brain_align.deploy.worlds.pretrained.base.importlib.util.find_spec", lambda name: None)
    assert "TRL, which is not installed" in refusal(base)


def test_too_few_pairs_are_refused(base, tmp_path):
    few = dialogues(tmp_path / "few.jsonl", 30)
    few.write_text(few.read_text() + "{torn\n")
    with pytest.raises(UserError, match=r"30 usable pairs of 30 prompts; unusable: 1 malformed.*=20, 5 are"):
        ensure_world(settings(base), tmp_path / "cache", str(few), silent)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kind": "demo"}, "kind=demo is synthetic"),
        ({"adapter": None, "layers": 2}, "remove one of them"),
    ],
)
def test_contradictions_are_named(changes, problem):
    with pytest.raises(ValueError, match=problem):
        settings("a/model", **changes)
    with pytest.raises(ValueError, match="need a base"):
        settings(None)


def test_a_run_on_a_poor_reward_model_is_warned(base, data, tmp_path):
    recipe = recipe_of(base, data, tmp_path)
    world = tmp_path / "world"
    world.mkdir()
    facts = {"reward": {"warning": "NO BETTER THAN LENGTH"}, "gold": {"warning": None}}
    (world / "world.json").write_text(json.dumps(facts))
    (found,) = warnings_of(resolve_in(recipe, world))
    assert found == "NO BETTER THAN LENGTH"
    (world / "world.json").unlink()
    assert warnings_of(resolve_in(recipe, world)) == []


def resolve_in(recipe: Recipe, world: Path) -> Recipe:
    return with_world(recipe, world).recipe
