"""What is said of a recipe's prompts before anything is started."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.preflight import Inputs, check_inputs, notes_on_delivery
from tests.unit.factories import recipe_settings
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


@pytest.mark.parametrize(("staleness", "notes"), [(0, 0), (1, 1)])
def test_what_one_version_at_a_time_costs_is_said(policy: Path, staleness: int, notes: int) -> None:
    settings = recipe_settings(
        policy={"model": str(policy)}, sampler={"delivery": "merged"}, algorithm={"max_staleness": staleness}
    )
    said = [note for note in notes_on_delivery(Recipe.model_validate(settings)) if "one version at a time" in note]
    assert len(said) == notes


def test_what_identifies_the_prompts_is_their_place_text_and_gold(policy: Path) -> None:
    rows = [{"prompt": "the cat", "label": "x"}, {"prompt": "sat", "label": "y"}]
    digests = {check(policy, variant).digest() for variant in (rows, rows[::-1], [rows[0], {**rows[1], "label": "z"}])}
    assert len(digests) == 3
    assert check(policy, rows).digest() in digests


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(policy: Path) -> None:
    larger = gpt2_like_tokenizer()
    larger.add_tokens(["<pad>"])
    larger.save_pretrained(policy)
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
