"""Worlds from a pretrained model, with a tiny random Llama in place of one."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.deploy.run.preflight import check_inputs
from brain_align.deploy.run.resolve import placed, resolve, with_world
from brain_align.deploy.worlds.build import ensure_world
from brain_align.deploy.worlds.pretrained import reward, training
from brain_align.deploy.worlds.pretrained.base import open_base
from brain_align.deploy.worlds.pretrained.pairs import Pair
from brain_align.deploy.worlds.pretrained.report import quality_table, read_facts, summary_lines, warnings_of
from brain_align.deploy.worlds.pretrained.training import Stage
from tests.unit.deploy.worlds.pretrained_base import chat_model, dialogues, settings, summaries

CLASSIFIER = {"kind": "classifier", "chat_template": True, "max_tokens": 64, "dtype": "float32"}


class Killed(BaseException):
    """In place of a signal that ends the process."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return chat_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(dialogues(tmp_path_factory.mktemp("data") / "pairs.jsonl"))


def silent(_):
    pass


def recipe_of(base: Path, data: str, cache: Path) -> Recipe:
    splits = {split: f"{{world}}/prompts/{split}.jsonl" for split in ("train", "validation", "test")}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "run": {"dir": str(cache / "run")},
            "prepare": {**settings(base).model_dump(exclude_unset=True), "cache": str(cache)},
            "data": {"path": data, **splits, "chat_template": "model", "max_prompt_tokens": 56},
            "policy": {"model": "{world}/policy", "dtype": "float32"},
            "sampling": {"max_tokens": 8},
            "scorers": {
                "reward": {**CLASSIFIER, "path": "{world}/reward"},
                "gold": {**CLASSIFIER, "path": "{world}/gold", "use": "evaluation"},
            },
            "objective": {"reward": "reward"},
            "algorithm": {"prompts_per_round": 4, "batch_prompts": 4},
        }
    )


def test_a_recipe_s_world_is_prepared_and_fits_the_recipe(base, data, tmp_path):
    said: list[str] = []
    resolved = resolve(recipe_of(base, data, tmp_path), said.append)
    world = resolved.world
    assert world is not None and sorted(path.name for path in world.iterdir()) == sorted(
        ["prompts", "pairs", "policy", "reward", "gold", "world.json"]
    )
    inputs = check_inputs(resolved.recipe, resolved.directory)
    assert any(note.startswith("train: ") for note in inputs.notes)
    row = json.loads((world / "prompts/test.jsonl").read_text().splitlines()[0])
    assert row["prompt"][0]["role"] == "user" and row["label"] == row["chosen"] != row["rejected"]
    facts = read_facts(world)
    assert facts["reward"]["quality"]["pairs"] == 20 == facts["rows"]["pairs"]["held out"]
    assert facts["reward"]["pairs"] == facts["gold"]["pairs"] == 30
    assert facts["policy"]["held_out_loss"] < facts["policy"]["base_loss"]
    assert any(line.startswith("reward model: step 4/4, loss") for line in said)
    assert quality_table(facts).row_count > 5 and len(summary_lines(facts)) >= 5
    again = resolve(recipe_of(base, data, tmp_path), lambda line: pytest.fail(line))
    assert again.world == world and placed(recipe_of(base, data, tmp_path)).prepare is not None


def test_a_killed_preparation_goes_on_where_it_was(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_REPORTS", 0)
    undisturbed = ensure_world(settings(base), tmp_path / "one", data, silent)
    said: list[str] = []
    for point in ("SFT policy: step 1/", "gold model: step 3/"):

        def killing(line: str, point: str = point) -> None:
            said.append(line)
            if line.startswith(point):
                raise Killed

        with pytest.raises(Killed):
            ensure_world(settings(base), tmp_path / "two", data, killing)
    world = ensure_world(settings(base), tmp_path / "two", data, said.append)
    assert "gold model: resumed from step 2" in said
    assert sum(line.startswith("reward model: step 1/") for line in said) == 1, "a finished stage is not done again"
    assert sum(line.startswith("gold model: step 1/") for line in said) == 1
    for model in ("policy", "reward", "gold"):
        files = [(place / model / "model.safetensors").read_bytes() for place in (undisturbed, world)]
        assert files[0] == files[1], model
    assert not list((tmp_path / "two").glob("*.partial"))


def test_a_half_written_checkpoint_is_not_used(tmp_path):
    for step, state in ((2, json.dumps({"global_step": 2})), (4, '{"global_st')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
    assert training._newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


def test_the_scorer_s_rewards_are_those_of_the_model_that_was_trained(base, tmp_path, monkeypatch):
    asked = settings(base)
    opened = open_base(asked)
    tokenizer = reward.reward_tokenizer(opened)
    texts = reward.reward_texts(tokenizer, opened, asked)
    long = "the cat sat on the mat " * 12  # cut from the left
    pairs = [Pair(f"{n} {'mat ' * n}{long if n == 3 else ''}", f"the cat {n}", "rain <|endoftext|>") for n in range(8)]
    trained: list[float] = []

    def watched(model, dtype, merged=training.merged):
        with torch.no_grad():
            for pair in pairs:
                ids = [texts.encode(pair.prompt, output) for output in (pair.chosen, pair.rejected)]
                values = [model(input_ids=torch.tensor([row])).logits.item() for row in ids]
                trained.append(values[0] - values[1])
        return merged(model, dtype)

    monkeypatch.setattr(reward, "merged", watched)
    stage = Stage("reward model", tmp_path / "checkpoints", silent, 0)
    reward.make_reward_model(opened, asked, pairs, tmp_path / "reward", stage)
    served = reward.margins(tmp_path / "reward", opened, asked, pairs, "reward", silent)
    assert served == pytest.approx(trained, abs=1e-4) and max(map(abs, served)) > 1e-3


def test_all_weights_may_be_trained(base, data, tmp_path):
    world = ensure_world(settings(base, adapter=None, dtype="bfloat16"), tmp_path, data, silent)
    assert AutoModelForCausalLM.from_pretrained(world / "policy").dtype == torch.bfloat16


def test_a_base_without_a_template_reads_summaries_as_plain_texts(tmp_path):
    plain = chat_model(tmp_path / "plain", template=None)
    data = str(summaries(tmp_path / "rows.jsonl"))
    world = ensure_world(settings(plain, kind="tldr"), tmp_path / "cache", data, silent)
    row = json.loads((world / "prompts/train.jsonl").read_text().splitlines()[0])
    assert row["prompt"].endswith("TL;DR:") and row["label"].startswith(" ")
    assert "no human preferences" in read_facts(world)["measures"]


def test_other_settings_and_other_files_make_another_world(base, data, tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(
        "brain_align.deploy.worlds.build.build_pretrained", lambda world, *_: built.append(world) or world.mkdir()
    )
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
        ({"base": None}, "need a base"),
        ({"adapter": None, "layers": 2}, "remove one of them"),
    ],
)
def test_contradictions_are_named(changes, problem):
    with pytest.raises(ValueError, match=problem):
        settings("a/model", **changes)


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
