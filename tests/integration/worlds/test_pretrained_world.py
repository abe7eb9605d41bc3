"""Worlds from a pretrained model, with a tiny random Llama in place of one: all that trains (TRL loads DeepSpeed)."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from brain_align.common.errors import UserError
from brain_align.deploy import pipeline
from brain_align.deploy.cli import main
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import save_config
from brain_align.deploy.run.preflight import check_inputs
from brain_align.deploy.run.resolve import placed, resolve, run_directory
from brain_align.deploy.worlds.build import ensure_world
from brain_align.deploy.worlds.pretrained import reward, training
from brain_align.deploy.worlds.pretrained.base import open_base
from brain_align.deploy.worlds.pretrained.pairs import Pair
from brain_align.deploy.worlds.pretrained.report import quality_table, read_facts, summary_lines, warnings_of
from brain_align.deploy.worlds.pretrained.training import Stage
from tests.unit.pretrained_base import REWARD, SFT, chat_model, dialogues, recipe_of, settings, summaries


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


def test_a_recipe_s_world_is_prepared_and_fits_the_recipe(base, data, tmp_path, capsys):
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
    assert facts["templated"] is True and facts["max_pair_tokens"] == 64
    assert warnings_of(resolved.recipe) == summary_lines(facts)[6:], "it reads the world as it was trained"
    assert quality_table(facts).row_count > 5 and len(summary_lines(facts)) >= 5
    assert resolve(recipe_of(base, data, tmp_path), lambda line: pytest.fail(line)).world == world
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe_of(base, data, tmp_path).model_dump(mode="json")))
    assert main(["prepare", str(tmp_path / "tiny.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "accuracy, %" in printed and "length alone, %" in printed and printed.endswith(f"{world}\n")


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


def test_a_second_epoch_goes_on_in_its_own_order(base, data, tmp_path, monkeypatch):
    """Killed in the middle of it, at 4 steps per epoch."""
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_REPORTS", 0)
    twice = {"sft": {"epochs": 2, **SFT}, "reward": {"epochs": 2, **REWARD}}
    undisturbed = ensure_world(settings(base, **twice), tmp_path / "one", data, silent)
    said: list[str] = []
    for point in ("reward model: step 6/8", "SFT policy: step 6/8"):

        def killing(line: str, point: str = point) -> None:
            said.append(line)
            if line.startswith(point):
                raise Killed

        with pytest.raises(Killed):
            ensure_world(settings(base, **twice), tmp_path / "two", data, killing)
    world = ensure_world(settings(base, **twice), tmp_path / "two", data, said.append)
    assert {"reward model: resumed from step 5", "SFT policy: resumed from step 5"} <= set(said)
    for model in ("policy", "reward"):
        files = [(place / model / "model.safetensors").read_bytes() for place in (undisturbed, world)]
        assert files[0] == files[1], model


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


def test_a_run_that_has_begun_looks_for_its_world_by_name(base, data, tmp_path, monkeypatch):
    asked: list[Path | None] = []

    def resolving(recipe, report, *, begun=None):
        asked.append(begun and begun.root)
        raise UserError("that was all")

    monkeypatch.setattr(pipeline, "resolve", resolving)
    recipe = recipe_of(base, data, tmp_path)
    directory = run_directory(recipe)
    for _ in range(2):
        with pytest.raises(UserError, match="that was all"):
            pipeline.run_recipe(recipe, PlainConsole())
        save_config(directory, placed(recipe), {"world": "hh-0123"})
        (directory.policies / "v000000").mkdir(parents=True, exist_ok=True)
    assert asked == [None, directory.root]


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
