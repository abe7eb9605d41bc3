"""What is checked of a preparation from a pretrained model before, and said of it after, anything is trained."""

import json
import os
import shutil
import socket
import tomllib
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.nn.models import end_tokens
from brain_align.deploy.cli import main
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import with_world
from brain_align.deploy.worlds import build
from brain_align.deploy.worlds.build import ensure_world
from brain_align.deploy.worlds.pretrained import build as pretrained_build
from brain_align.deploy.worlds.pretrained import identity, training
from brain_align.deploy.worlds.pretrained.base import _LEAST_TRL, Base, open_base
from brain_align.deploy.worlds.pretrained.policy import save_beside
from brain_align.deploy.worlds.pretrained.quality import quality
from brain_align.deploy.worlds.pretrained.report import warnings_of
from tests.locations import ROOT
from tests.unit.pretrained_base import chat_model, dialogues, recipe_of, settings


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return chat_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(dialogues(tmp_path_factory.mktemp("data") / "pairs.jsonl"))


def silent(_):
    pass


TRL_VERSION = "brain_align.deploy.worlds.pretrained.base.version"


def without_trl(monkeypatch) -> None:
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(TRL_VERSION, missing)


def test_a_half_written_checkpoint_is_not_used(tmp_path):
    for step, state in ((2, json.dumps({"global_step": 2})), (4, '{"global_st')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
    assert training._newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


def test_other_settings_and_other_files_make_another_world(base, data, tmp_path, monkeypatch):
    built = []

    def make(world, *_, **__):
        built.append(world)
        world.mkdir()

    monkeypatch.setattr("brain_align.deploy.worlds.build.build_pretrained", make)
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
    without_trl(monkeypatch)
    assert "TRL, which is not installed" in refusal(base)
    monkeypatch.setattr(TRL_VERSION, lambda name: "1.15.2")
    assert "TRL 1.16 or later, but 1.15.2 is installed; upgrade" in refusal(base)


def test_the_least_version_of_trl_is_that_of_the_extra():
    (wanted,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["prepare"]
    assert wanted.startswith(f"trl>={_LEAST_TRL},")


def test_a_finished_world_is_found_without_trl_and_without_its_base(data, tmp_path, monkeypatch):
    base, cache = chat_model(tmp_path / "base"), tmp_path / "cache"
    monkeypatch.setattr("brain_align.deploy.worlds.build.build_pretrained", lambda world, *_, **__: world.mkdir())
    world = ensure_world(settings(base), cache, data, silent)
    without_trl(monkeypatch)
    with monkeypatch.context() as unread:
        unread.setattr(identity, "digest_files", lambda *_: pytest.fail("an unchanged base is read again"))
        assert ensure_world(settings(base), cache, data, pytest.fail) == world
    (base / "model.safetensors").unlink()
    for _ in range(2):
        said: list[str] = []
        assert ensure_world(settings(base), cache, data, said.append) == world
        assert any("is not there now; using what was prepared" in line for line in said)
        shutil.rmtree(base, ignore_errors=True)
    with pytest.raises(UserError, match="does not exist"):
        ensure_world(settings(base, seed=1), cache, data, silent)


def test_a_base_of_the_hub_is_known_when_the_hub_is_gone(data, tmp_path, monkeypatch):
    cache, commit = tmp_path / "cache", "a" * 40
    monkeypatch.setattr(identity, "load_config", lambda source: SimpleNamespace(_commit_hash=commit))
    monkeypatch.setattr("brain_align.deploy.worlds.build.open_base", lambda asked: None)
    monkeypatch.setattr("brain_align.deploy.worlds.build.build_pretrained", lambda world, *_, **__: world.mkdir())
    monkeypatch.setattr("brain_align.deploy.worlds.build._build", lambda world, *_: None)
    known = identity.identify("org/model", cache)
    assert known.digest == str(["org/model", commit])
    cache.mkdir()
    identity.remember(known, "org/model", cache)

    def away(source):
        raise UserError("the hub cannot be reached")

    monkeypatch.setattr(identity, "load_config", away)
    later = identity.identify("org/model", cache)
    assert later.digest == known.digest and "cannot be reached" in str(later.missing)
    with pytest.raises(UserError, match="cannot be reached"):
        identity.identify("org/other", cache)


def test_a_changed_base_is_another_one(tmp_path):
    base, cache = chat_model(tmp_path / "base"), tmp_path / "cache"
    cache.mkdir()
    before = identity.identify(str(base), cache)
    identity.remember(before, str(base), cache)
    weights = base / "model.safetensors"
    content, state = weights.read_bytes(), weights.stat()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert identity.identify(str(base), cache).digest != before.digest
    weights.write_bytes(content)
    assert identity.identify(str(base), cache).digest == before.digest


def test_more_than_one_epoch_is_of_a_newer_version(base, data, tmp_path, monkeypatch):
    """Orders of one epoch are as before, so are their worlds' names; those of several have changed."""
    parts: list[tuple[Any, ...]] = []

    def taken(*found: Any) -> str:
        parts.append(found)
        return "0" * 32

    monkeypatch.setattr(build, "digest", taken)
    known = identity.identify(str(base), tmp_path)
    for epochs in (0.5, 1, 1.5):
        build._digest(settings(base, sft={"epochs": epochs}), ["data"], known)
    assert [found[1] for found in parts] == [1, 1, 2]
    assert all(found[0] == "pretrained world" and found[3:] == (known.digest, ["data"]) for found in parts)


def test_without_locks_two_builders_share_no_directory(base, data, tmp_path, monkeypatch):
    """The other one, which is faster, has a directory of its own as well."""

    @contextmanager
    def no_lock(path, **_):
        yield False

    places: list[Path] = []

    def stages(task):
        places.append(task.place)
        world = task.place.with_name(task.place.name.partition(".partial")[0])
        world.mkdir()
        (world / "world.json").write_text("the other's")
        (task.place / "under-way").mkdir()
        return {}

    monkeypatch.setattr(build, "file_lock", no_lock)
    monkeypatch.setattr(pretrained_build._Task, "all_stages", stages)
    said: list[str] = []
    world = ensure_world(settings(base), tmp_path / "cache", data, said.append)
    assert (world / "world.json").read_text() == "the other's"
    assert places[0].name == f"{world.name}.partial-{socket.gethostname()}-{os.getpid()}"
    assert not places[0].exists() and any("has no file locks" in line and places[0].name in line for line in said)


def test_a_preparation_killed_at_its_very_end_loses_nothing(base, data, tmp_path, monkeypatch):
    def stages(task):
        (task.place / "under-way/facts").mkdir(parents=True)
        return {}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained_build._Task, "all_stages", stages)
    monkeypatch.setattr(pretrained_build.os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        ensure_world(settings(base), tmp_path, data, silent)
    (partial,) = tmp_path.glob("*.partial")
    assert (partial / "under-way/facts").is_dir()


def test_the_end_tokens_of_a_hub_base_are_the_policy_s(base, tmp_path, monkeypatch):
    generation = tmp_path / "generation_config.json"
    generation.write_text('{"eos_token_id": [2, 7]}')
    monkeypatch.setattr(end_tokens, "hub_failure", lambda: None)
    monkeypatch.setattr(end_tokens, "cached_file", lambda name, *_, **__: generation if name == "org/model" else None)
    policy = tmp_path / "policy"
    save_beside(Base("org/model", open_base(settings(base)).encoding), policy)
    assert json.loads((policy / "generation_config.json").read_text())["eos_token_id"] == [2, 7]


def test_seconds_are_those_of_all_starts(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(training.time, "monotonic", lambda: clock.now)
    reporter = training._Reporter(training.Stage("policy", tmp_path / "checkpoints", silent, 0))
    clock.now = 10
    reporter.on_save(None, None, None)  # then it is killed
    with pytest.raises(KeyboardInterrupt), training.Spent(tmp_path / "checkpoints"):
        clock.now = 15
        raise KeyboardInterrupt
    with training.Spent(tmp_path / "checkpoints") as spent:
        clock.now = 17
        assert spent.seconds() == 17
    (tmp_path / "checkpoints/seconds.json").write_text("{torn")
    assert training.Spent(tmp_path / "checkpoints").seconds() == 0


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
    poor, good = quality([1.0] * 7 + [-1.0] * 3, [1] * 10, [1]), quality([1.0] * 9 + [-1.0], [-1] * 10, [1])
    # so judged by whatever standard was in force when the world was prepared
    facts = {"reward": {"quality": poor, "warning": None}, "gold": {"quality": good, "warning": None}}
    (world / "world.json").write_text(json.dumps(facts))
    (found,) = warnings_of(resolve_in(recipe, world))
    assert "THE REWARD MODEL IS NO" in found
    (world / "world.json").write_text('{"reward')
    with pytest.raises(UserError, match="is damaged"):
        warnings_of(resolve_in(recipe, world))
    (world / "world.json").unlink()
    assert warnings_of(resolve_in(recipe, world)) == []


def test_a_recipe_that_reads_a_world_otherwise_than_it_was_trained_is_warned(base, data, tmp_path):
    world = tmp_path / "world"
    world.mkdir()
    (world / "world.json").write_text(json.dumps({"templated": True, "max_pair_tokens": 64}))
    recipe = resolve_in(recipe_of(base, data, tmp_path), world)
    assert warnings_of(recipe) == []
    settings_of = recipe.model_dump(mode="json", exclude_unset=True)
    settings_of["data"]["chat_template"] = "none"
    settings_of["scorers"]["reward"] |= {"max_tokens": 2048, "chat_template": False}
    settings_of["scorers"]["gold"] |= {"truncation": "right"}
    policy, reward, gold = warnings_of(Recipe.model_validate(settings_of))
    assert "POLICY DOES NOT READ" in policy and "set data.chat_template=model" in policy
    assert "SCORER REWARD DOES NOT READ" in reward and "scorers.reward.chat_template=true" in reward
    assert "scorers.reward.max_tokens=64" in reward and "scorers.gold.truncation" in gold
    (world / "world.json").write_text(json.dumps({"templated": False, "max_pair_tokens": 64}))
    assert len(warnings_of(recipe)) == 3
    (world / "world.json").write_text(json.dumps({"kind": "hh"}))  # of an earlier version, or a toy task
    assert warnings_of(Recipe.model_validate(settings_of)) == []


@pytest.mark.parametrize("name", ["hh-smollm", "tldr-smollm", "hh-gpu", "tldr-gpu", "compare-smollm"])
def test_shipped_recipes_read_their_worlds_as_these_are_trained(name, tmp_path):
    recipe = load_recipe(f"{name}.yaml", ["data.path=data"])
    assert recipe.prepare is not None
    facts = {"templated": True, "max_pair_tokens": recipe.prepare.max_pair_tokens}
    (tmp_path / "world.json").write_text(json.dumps(facts))
    assert warnings_of(resolve_in(recipe, tmp_path)) == []


def test_a_world_without_its_facts_is_one_sentence(base, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("brain_align.deploy.worlds.build.build_pretrained", lambda world, *_, **__: world.mkdir())
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe_of(base, data, tmp_path).model_dump(mode="json")))
    assert main(["prepare", str(tmp_path / "tiny.yaml")]) == 2
    assert "lacks world.json" in capsys.readouterr().err


def test_an_interrupted_preparation_says_that_it_resumes(base, data, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("brain_align.deploy.worlds.build.build_pretrained", interrupted)
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe_of(base, data, tmp_path).model_dump(mode="json")))
    assert main(["prepare", str(tmp_path / "tiny.yaml")]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def resolve_in(recipe: Recipe, world: Path) -> Recipe:
    return with_world(recipe, world).recipe
