from pathlib import Path

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from brain_align.common.data.conversations import Message, as_text
from brain_align.common.data.prompts import Encode, RefusedPromptError
from brain_align.common.errors import UserError
from brain_align.common.nn.prompt_encoding import TextEncoding, template_text
from tests.unit.tiny_models import gpt2_like_tokenizer

EOS = "<|endoftext|>"
BOS = "<s>"
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [Message(role="system", content="the mat"), Message(role="user", content="the cat")]


def tokenizer_of(special: str) -> PreTrainedTokenizerFast:
    """GPT-2's in small, which puts special tokens around texts as the pattern says."""
    tokenizer = gpt2_like_tokenizer()
    tokenizer.add_special_tokens({"bos_token": AddedToken(BOS, special=True)})
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in (BOS, EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=special, special_tokens=ids)
    return tokenizer


def prompt_encoding(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Encode:
    template = template_text(tokenizer, chat_template)
    return TextEncoding(tokenizer, template, ends=[tokenizer.eos_token_id], rows=len(tokenizer)).prompts


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("special", "before"), [("$0", ""), (f"{BOS} $0", BOS), (f"$0 {EOS}", ""), (f"{BOS} $0 {EOS}", BOS)]
)
def test_a_text_gets_what_stands_before_texts_once_and_no_end(special: str, before: str) -> None:
    tokenizer = tokenizer_of(special)
    encode = prompt_encoding(tokenizer, "none")
    plain, bare = encode([f"{before}the cat", "the cat"])
    assert plain == bare == ids(tokenizer, f"{before}the cat")
    assert encode([f"the cat{EOS}"])[0][-1] == tokenizer.eos_token_id  # what the text itself says stays


@pytest.mark.parametrize(
    ("has_template", "texts", "said"),
    [
        (True, ["the cat", "the mat"], True),
        (True, ["the cat", f"the mat{EOS}the"], False),  # rendered beforehand
        (False, ["the cat"], False),
        (True, [], False),
    ],
)
def test_a_chat_model_that_gets_plain_texts_is_noted(has_template: bool, texts: list[str], said: bool) -> None:
    tokenizer = tokenizer_of(f"{BOS} $0")
    tokenizer.chat_template = TEMPLATE if has_template else None
    encoding = TextEncoding(tokenizer, None, ends=[tokenizer.eos_token_id], rows=len(tokenizer))
    for text in texts:
        encoding.prompts([text])
    assert any("set data.chat_template=model if it is a chat model" in note for note in encoding.notes()) == said


def test_raw_texts_are_what_the_tokenizer_makes_of_them() -> None:
    tokenizer = tokenizer_of(f"{BOS} $0")
    for text in (" the cat", "ß日本\n", "", "the cat sat on the mat"):
        assert prompt_encoding(tokenizer, "none")([text]) == [list(tokenizer(text)["input_ids"])]


def test_a_conversation_ends_where_the_assistant_begins_and_has_one_bos(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(f"{BOS} $0 {EOS}")
    tokenizer.chat_template = TEMPLATE
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE)
    for template in ("model", str(file)):
        found = prompt_encoding(tokenizer, template)(["the cat", as_text(TALK)])
        assert found == [
            ids(tokenizer, f"{BOS}<user>the cat<assistant>"),
            ids(tokenizer, f"{BOS}<system>the mat<user>the cat<assistant>"),
        ]
        assert [row.count(tokenizer.bos_token_id) for row in found] == [1, 1]


def test_templates_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer has no chat template; set it to the file of one, or to none"):
        prompt_encoding(gpt2_like_tokenizer(), "model")
    with pytest.raises(UserError, match=r"chat_template=.*absent\.jinja cannot be read"):
        prompt_encoding(gpt2_like_tokenizer(), str(tmp_path / "absent.jinja"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [("{{ raise_exception('no system turn') }}", "no system turn"), ("{% for %}", "rejects it: ")],
)
def test_what_a_template_refuses_is_named_by_its_place(tmp_path: Path, template: str, reason: str) -> None:
    file = tmp_path / "chat.jinja"
    refusing = (
        f"{{% if messages[0].role == 'system' %}}{template}{{% endif %}}{TEMPLATE}" if "raise" in template else template
    )
    file.write_text(refusing)
    with pytest.raises(RefusedPromptError, match=reason) as refused:
        prompt_encoding(gpt2_like_tokenizer(), str(file))(["the cat", as_text(TALK)])
    assert refused.value.index == (1 if "raise" in template else 0)
