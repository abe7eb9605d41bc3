"""What stands beside the weights of a result: files as their authors wrote them, the run's template, and a card."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from brain_align.common.errors import UserError
from brain_align.deploy.commands.export import export
from tests.unit.deploy.commands.test_export import a_run, logprobs

INVALID = {"eos_token_id": 0, "temperature": 0.9, "top_p": 0.6, "do_sample": False}  # as Llama-2-chat's was
FIGURES = {
    "train_rm_win_rate": 21.9,
    "train_rm_win_rate_ci95": 5.1,
    "mean_reward": 0.94,
    "truth_quality": None,
    "kl_to_prior": 0.0,
    "mean_tokens": 12.7,
    "ended": 100.0,
    "prompts": 256,
}


@pytest.mark.parametrize("policy", [{}, {"method": "full"}])
def test_the_model_s_own_files_are_copied_as_they_are(tmp_path, policy) -> None:
    directory, _ = a_run(tmp_path, **policy)
    own = {"generation_config.json": json.dumps(INVALID), "LICENSE": "theirs", "tokenizer.model": "pieces"}
    for name, text in own.items():
        (tmp_path / "model" / name).write_text(text)
    (tmp_path / "model/tokenization_own.py").write_text("raise SystemExit")
    said = export(directory.root, "newest", tmp_path / "out", merge=True)
    assert {name: (tmp_path / "out" / name).read_text() for name in own} == own
    tokenizer_files = [path.name for path in (tmp_path / "model").glob("tokenizer*")]
    assert all(
        (tmp_path / "out" / name).read_bytes() == (tmp_path / "model" / name).read_bytes() for name in tokenizer_files
    )
    assert not (tmp_path / "out/tokenization_own.py").exists()
    assert "note:" not in said


@pytest.mark.parametrize("merge", [False, True])
def test_the_run_s_template_becomes_the_tokenizer_s(tmp_path, merge) -> None:
    directory, _ = a_run(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = "theirs {{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "model", save_jinja_files=False)
    (directory.root / "chat_template.jinja").write_text("ours {{ messages[0]['content'] }} ä", encoding="utf-8")
    export(directory.root, "newest", tmp_path / "out", merge=merge)
    turns = [{"role": "user", "content": "hello"}]
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert written.apply_chat_template(turns, tokenize=False) == "ours hello ä"
    assert (
        json.loads((tmp_path / "out/tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"][:4] == "ours"
    )


def test_an_adapter_is_loaded_from_any_directory(tmp_path, monkeypatch) -> None:
    """Also one whose run was begun with a relative place, from a directory that is not the present one."""
    monkeypatch.chdir(tmp_path)
    directory, policy = a_run(tmp_path, model="model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    export(directory.root, "1", Path("out"), merge=False)
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "model")
    monkeypatch.chdir("/")
    for loader in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
        loaded = loader.from_pretrained(tmp_path / "elsewhere/out")
        assert (logprobs(loaded) - logprobs(policy)).abs().max() < 1e-5
    export(directory.root, "1", tmp_path / "merged", merge=True)
    assert (logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) - logprobs(policy)).abs().max() < 1e-4


def test_a_hub_id_stays_one_and_the_tokenizer_comes_from_its_cache(tmp_path, monkeypatch) -> None:
    directory, _ = a_run(tmp_path)
    config = directory.root / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["policy"]["model"] = "org/model@v1"
    config.write_text(yaml.safe_dump(settings))
    for version in directory.policies.glob("v*/adapter_config.json"):
        written = json.loads(version.read_text())
        version.write_text(json.dumps(written | {"base_model_name_or_path": "org/model"}))
        _publish_again(version.parent)
    asked: list[dict] = []

    def snapshot_download(name, **settings):
        asked.append({"name": name, **settings})
        return str(tmp_path / "model")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    export(directory.root, "1", tmp_path / "out", merge=False)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/model", "v1")
    assert (tmp_path / "out/tokenizer.json").exists()
    assert [(one["name"], one["revision"], one["local_files_only"]) for one in asked] == [("org/model", "v1", True)]
    card = (tmp_path / "out/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "org/model"

    def unreachable(name, **settings):
        raise OSError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    said = export(directory.root, "1", tmp_path / "without", merge=False)
    assert "note: without the tokenizer of org/model, which cannot be read: no route to the hub" in said
    assert (tmp_path / "without/adapter_model.safetensors").exists()


def _publish_again(version: Path) -> None:
    from brain_align.common.identity import digest_files

    marker = version / "version.json"
    facts = json.loads(marker.read_text())
    marker.write_text(json.dumps(facts | {"digest": digest_files(version, facts["files"])}))


def test_a_model_that_is_gone_costs_an_adapter_only_its_tokenizer(tmp_path) -> None:
    directory, _ = a_run(tmp_path)
    shutil.rmtree(tmp_path / "model")
    said = export(directory.root, "1", tmp_path / "out", merge=False)
    assert "note: without the tokenizer" in said
    assert (tmp_path / "out/adapter_model.safetensors").exists()


def test_an_empty_directory_becomes_the_result_and_nothing_else_does(tmp_path) -> None:
    directory, _ = a_run(tmp_path)
    for made in ("empty", "full", "file", "dangling"):
        (tmp_path / made).mkdir()
    (tmp_path / "full/note").write_text("mine")
    (tmp_path / "file").rmdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").rmdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    export(directory.root, "1", tmp_path / "empty", merge=False)
    assert (tmp_path / "empty/adapter_config.json").exists()
    for taken in ("full", "file", "dangling"):
        with pytest.raises(UserError, match=rf"{taken} exists already; name a new directory"):
            export(directory.root, "1", tmp_path / taken, merge=False)
    assert (tmp_path / "full/note").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("policy", [{}, {"quantization": "nf4"}, {"method": "full"}])
def test_the_card_says_what_came_out_and_how_it_is_loaded(tmp_path, policy) -> None:
    directory, _ = a_run(tmp_path, **policy)
    after = FIGURES | {"train_rm_win_rate": 63.7}
    validation = {"0": FIGURES, "1": after}
    summary = {"best_version": 1, "before": FIGURES, "after": after, "validation": validation}
    directory.summary.write_text(json.dumps(summary))
    export(directory.root, "best", tmp_path / "out", merge=False)
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    facts = yaml.safe_load(card.split("---")[1])
    assert facts["library_name"] == ("transformers" if policy.get("method") else "peft")
    assert "| win rate vs. reference (training reward), % | 21.9 | 63.7 |" in card
    assert "On 256 test prompts" in card and "ground-truth" not in card
    assert ("--enable-lora --max-lora-rank 64" in card) == (not policy)
    assert ("load_in_4bit=True" in card) == ("quantization" in policy)
    recipe = yaml.safe_load(card.split("## Recipe")[1].split("```")[1])
    assert recipe["objective"]["name"] == "brain" and "timeouts" not in recipe
    export(directory.root, "0", tmp_path / "first", merge=False)
    assert "On 256 validation prompts" in (tmp_path / "first/README.md").read_text(encoding="utf-8")
