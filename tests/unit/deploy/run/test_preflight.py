"""What is said of a recipe's prompts before anything is started."""

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers
from transformers import BertConfig, BertForSequenceClassification

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.requests import Prompt
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.run.directory import RunDirectory, save_config, used_template
from brain_align.deploy.run.preflight import Inputs, check_inputs, check_stored_prompts
from tests.unit.factories import group, recipe_settings
from tests.unit.tiny_models import gpt2_like_tokenizer, llama, save

TOKENIZER = gpt2_like_tokenizer()
FUNCTION = {"kind": "function", "function": "builtins:len"}
USER = {"role": "user", "content": "the cat"}


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    save(llama(vocabulary=len(TOKENIZER)), tmp_path / "policy")
    TOKENIZER.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def check(policy: Path, rows: list[dict[str, Any]], scorer: dict[str, Any] = FUNCTION, **data: Any) -> Inputs:
    file = policy.parent / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    splits = {split: str(file) for split in ("train", "validation", "test")}
    recipe = recipe_settings(
        data={**splits, "max_prompt_tokens": 40, **data},
        policy={"model": str(policy)},
        sampling={"max_tokens": 8},
        scorers={"reward": scorer},
        algorithm={"prompts_per_round": 2, "updates_per_round": 1, "batch_prompts": 2},
    )
    found = check_inputs(Recipe.model_validate(recipe), RunDirectory(policy.parent / "run"))
    assert isinstance(found, Inputs)
    return found


def test_each_split_s_prompts_are_counted(policy: Path) -> None:
    texts = ["the cat", "", "the mat " * 60, "sat", " "]
    inputs = check(policy, [{"prompt": text, "label": "x"} for text in texts])
    assert [prompt.text for prompt in inputs.train] == ["the cat", "sat"]
    counted = "2 prompts of .*prompts.jsonl; skipped 1 .first: row 3. longer than 40 tokens, 2 .first: row 2. empty"
    for split in ("train", "validation", "test"):
        assert [note for note in inputs.notes if note.startswith(f"{split}: 2 prompts")]
    assert re.search(counted, inputs.notes[0])


def test_what_identifies_the_prompts_is_their_place_text_and_gold(policy: Path) -> None:
    rows = [{"prompt": "the cat", "label": "x"}, {"prompt": "sat", "label": "y"}]
    digests = {check(policy, variant).digest() for variant in (rows, rows[::-1], [rows[0], {**rows[1], "label": "z"}])}
    assert len(digests) == 3
    assert check(policy, rows).digest() in digests


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(policy: Path) -> None:
    save(llama(vocabulary=len(TOKENIZER) - 5), policy)
    with pytest.raises(UserError, match=r"policy does not fit the model: it has token ids up to \d+, the model's"):
        check(policy, [{"prompt": "the cat", "label": "x"}] * 2)


def test_scorers_of_plain_text_are_not_given_conversations(policy: Path) -> None:
    template = policy.parent / "chat.jinja"
    template.write_text("{% for turn in messages %}{{ turn.content }}\n{% endfor %}")
    one, two = ({"prompt": [USER] * turns, "label": "x"} for turns in (1, 2))
    settings: dict[str, Any] = {"chat_template": str(template)}
    assert check(policy, [one, two], **settings).train.conversations == 1
    (policy / "pytorch_model.bin").write_bytes(b"")
    tldr = {"kind": "tldr", "path": str(policy)}
    assert len(check(policy, [one, one], tldr, **settings).train) == 2
    with pytest.raises(UserError, match=r"scorers.reward \(tldr\) reads prompts as plain text, but 1 prompts of"):
        check(policy, [one, two], tldr, **settings)
    for split in ("validation", "test"):
        file = policy.parent / f"{split}.jsonl"
        file.write_text("\n".join(map(json.dumps, [two, two, one])))
        with pytest.raises(UserError, match=rf"reads prompts as plain text, but 2 prompts of .*{split}\.jsonl are"):
            check(policy, [one, one], tldr, **settings, **{split: str(file)})


def test_prompts_that_a_classifier_s_template_refuses_are_named_before_anything_starts(policy: Path) -> None:
    template = policy.parent / "chat.jinja"
    template.write_text("{% for turn in messages %}{{ turn.content }}\n{% endfor %}", encoding="utf-8")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(TOKENIZER), num_labels=1, pad_token_id=0, max_position_embeddings=32, **size)
    reward = policy.parent / "reward"
    save(BertForSequenceClassification(config), reward)
    TOKENIZER.save_pretrained(reward)
    (reward / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for turn in messages %}{{ turn.content }}{% endfor %}",
        encoding="utf-8",
    )
    scorer = {"kind": "classifier", "path": str(reward), "chat_template": True}
    plain, system = ({"prompt": turns, "label": "x"} for turns in ([USER], [{"role": "system", "content": "a"}, USER]))
    assert len(check(policy, [plain, plain], scorer, chat_template=str(template)).train) == 2
    with pytest.raises(
        UserError,
        match=r"scorers\.reward \(.*reward\) cannot read .*jsonl, row 2, and 1 more prompts, \(the chat ",
    ):
        check(policy, [plain, system, system], scorer, chat_template=str(template))
    with pytest.raises(UserError, match=r"scorers\.reward\.max_tokens=64 is more than the 32 tokens that .* reads"):
        check(policy, [plain, plain], scorer | {"max_tokens": 64}, chat_template=str(template))


def test_all_that_is_wrong_is_reported_together_and_once(policy: Path) -> None:
    rows = [{"prompt": "the cat", "label": "x"}]
    missing = {"validation": "none/v.jsonl", "test": "none/v.jsonl"}
    (policy / "tokenizer.json").unlink()
    (policy / "tokenizer_config.json").unlink()
    with pytest.raises(UserError) as refused:
        check(policy, rows, {"kind": "function", "function": "builtins:nothing"}, **missing)
    problems = str(refused.value).splitlines()
    assert len(problems) == 4
    for expected in (
        "'nothing'",
        str(policy),
        "none/v.jsonl",
        "algorithm.prompts_per_round=2 is more than the 1 usable",
    ):
        assert sum(expected in problem for problem in problems) == 1, expected


# -- what tokenizer and chat template make of the prompts

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
ROWS = [{"prompt": "the cat", "label": "x"}, {"prompt": "sat", "label": "y"}]


def test_only_texts_with_a_token_that_the_model_lacks_are_refused(policy: Path) -> None:
    larger = gpt2_like_tokenizer()
    larger.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    larger.save_pretrained(policy)
    assert any("its tokenizer also '<image_soft_token>'" in note for note in check(policy, ROWS).notes)
    with pytest.raises(UserError, match=r"prompts\.jsonl, row 2, cannot be encoded \(it has the token '<image_soft"):
        check(policy, [ROWS[0], {"prompt": "<image_soft_token> sat", "label": "y"}])
    check(policy, [ROWS[0], {"prompt": "sat", "label": "<image_soft_token>"}])  # which is not trained on


def begun(policy: Path, inputs: Inputs) -> RunDirectory:
    directory = RunDirectory(policy.parent / "run")
    save_config(directory, Recipe.model_validate(recipe_settings()), inputs.facts(), inputs.template)
    (directory.policies / "v000000").mkdir(parents=True, exist_ok=True)
    return directory


def test_a_template_that_has_changed_since_the_run_began_is_refused(policy: Path) -> None:
    file = policy.parent / "chat.jinja"
    file.write_text(f"Today: 01 Jan 2026{TEMPLATE}")
    first = check(policy, ROWS, chat_template=str(file))
    directory = begun(policy, first)
    assert used_template(directory) == first.template == file.read_text()
    begun(policy, check(policy, ROWS, chat_template=str(file)))
    file.write_text(f"Today: 02 Jan 2026{TEMPLATE}")
    changed = check(policy, ROWS, chat_template=str(file))
    assert changed.digest() == first.digest()
    with pytest.raises(UserError, match=r"begun with other token ids of the same .*chat_template\.jinja\); restore it"):
        begun(policy, changed)
    assert used_template(directory) == first.template


def test_a_tokenizer_that_has_changed_since_the_run_began_is_refused(policy: Path) -> None:
    begun(policy, check(policy, ROWS))
    other = gpt2_like_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    other.save_pretrained(policy)
    begun(policy, check(policy, ROWS))  # these prompts are the same to it
    with_capitals = [{"prompt": "The cat", "label": "x"}, ROWS[1]]
    lowered = check(policy, with_capitals).facts()
    TOKENIZER.save_pretrained(policy)
    assert check(policy, with_capitals).facts()["token_ids"] != lowered["token_ids"]
    fewer = gpt2_like_tokenizer(eos="<|end|>")
    fewer.save_pretrained(policy)
    with pytest.raises(UserError, match="the tokenizer or the chat template has changed since"):
        begun(policy, check(policy, ROWS))


def test_a_template_that_writes_the_time_keeps_that_of_the_run(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=3, seconds=7)

    file = policy.parent / "chat.jinja"
    file.write_text("{{ strftime_now('%d %b %Y %H:%M:%S') }}" + TEMPLATE)
    first = check(policy, ROWS, chat_template=str(file))
    assert any("writes the date or time; the run keeps" in note for note in first.notes)
    begun(policy, first)
    monkeypatch.setattr("brain_align.deploy.run.preflight.datetime", Later)
    again = check(policy, ROWS, chat_template=str(file))
    assert list(again.train) == list(first.train)
    begun(policy, again)


def test_a_run_of_an_earlier_version_gains_what_that_did_not_save(policy: Path) -> None:
    inputs = check(policy, ROWS)
    directory = begun(policy, inputs)
    facts = json.loads(directory.facts.read_text())
    directory.facts.write_text(json.dumps({name: facts[name] for name in ("recipe_digest", "prompts", "source")}))
    begun(policy, inputs)
    assert json.loads(directory.facts.read_text())["token_ids"] == facts["token_ids"]
    assert used_template(directory) is None


def test_a_conversation_that_the_assistant_has_ended_is_named_by_its_row(policy: Path) -> None:
    file = policy.parent / "chat.jinja"
    file.write_text(TEMPLATE)
    ended = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    rows: list[dict[str, Any]] = [ROWS[0], {"prompt": ended, "label": "x"}]
    with pytest.raises(UserError, match=r"row 2, cannot be encoded \(it ends with the assistant's turn: remove"):
        check(policy, rows, chat_template=str(file))


def test_a_store_of_the_same_prompts_with_other_token_ids_is_refused(policy: Path, tmp_path: Path) -> None:
    prompts = check(policy, ROWS).train
    store = SampleStore(tmp_path / "store", "run")
    check_stored_prompts(store, prompts)  # nothing is there yet

    def stored(name: str, prompt: Prompt, ids: list[int]) -> None:
        row = group(name, prompt_id=prompt.prompt_id, prompt_text=prompt.text, prompt_token_ids=ids)
        store.append_groups(batch_from_rows(GROUPS, [row]))

    stored("a", prompts[0], list(prompts[0].token_ids))
    stored("b", Prompt("gone", "a prompt that is no longer there", (), None), [7])
    check_stored_prompts(store, prompts)
    stored("c", prompts[1], [*prompts[1].token_ids, 7])
    with pytest.raises(UserError, match=rf"had other token ids \(the first: prompt {prompts[1].prompt_id}\)"):
        check_stored_prompts(store, prompts)
