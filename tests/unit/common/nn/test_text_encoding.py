"""The policy's encoding of texts with tokenizers and templates as real models have them."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import ByT5Tokenizer, MistralConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from brain_align.common.config.inputs import DataSection, PolicySection
from brain_align.common.data.conversations import Message, as_text
from brain_align.common.data.prompts import RefusedPromptError
from brain_align.common.errors import UserError
from brain_align.common.nn.models.causal_lm import load_tokenizer
from brain_align.common.nn.models.end_tokens import end_tokens
from brain_align.common.nn.prompt_encoding import TextEncoding, policy_encoding
from brain_align.common.nn.token_ids import continuation_ids
from tests.unit.tiny_models import gpt2_like_tokenizer, llama, save

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MARKS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"]
ASKED = {"train": "a", "validation": "b", "test": "c"}


def byte_level(eos: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    tokenizer = gpt2_like_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.add_special_tokens({"eos_token": eos, "bos_token": "<bos>"})
    return tokenizer


def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2 has it: a space stands before a text, and spaces are parts of words."""
    words = (("t", "h"), ("th", "e"), ("▁", "the"), ("H", "e"), ("He", "l"), ("l", "o"), ("Hel", "lo"), ("▁", "Hello"))
    merges = list(words)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def encoding(
    tokenizer: PreTrainedTokenizerBase, template: str | None, ends: list[str] | None = None, **more: Any
) -> TextEncoding:
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ends or [tokenizer.eos_token]]
    return TextEncoding(tokenizer, template, ends=ids, **({"rows": len(tokenizer)} | more))


def text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


# -- completions


@pytest.mark.parametrize(
    ("template", "eos", "ends", "end"),
    [
        (None, "<|im_end|>", None, "<|im_end|>"),
        (CHATML, "<|im_end|>", None, "<|im_end|>"),
        (CHATML, "<eos>", ["<eos>", "<|im_end|>"], "<|im_end|>"),
        (GEMMA, "<eos>", ["<eos>", "<end_of_turn>"], "<end_of_turn>"),  # Gemma 3
        (CHATML, "<eos>", ["<eos>"], "<|im_end|>"),  # which the sampler does not end at: noted
        ("{{ messages[-2].content }}{{ messages[-1].content }}", "<eos>", ["<eos>"], "<eos>"),
        ("{% for m in messages %}[{{ m.content }}]\n{% endfor %}", "<eos>", ["<eos>"], "<eos>"),
    ],
)
def test_a_completion_ends_as_the_template_ends_the_assistant_s_turn(
    template: str | None, eos: str, ends: list[str] | None, end: str
) -> None:
    tokenizer = byte_level(eos)
    found = encoding(tokenizer, template, ends)
    assert text(tokenizer, found.completion("the cat")) == f"the cat{end}"
    assert found.completion(" sat")[-1] == tokenizer.convert_tokens_to_ids(end)
    noted = any("does not end outputs" in note for note in found.notes())
    assert noted == (template == CHATML and ends == ["<eos>"])


def test_a_completion_is_trimmed_where_the_template_trims_it() -> None:
    tokenizer = byte_level("<eos>")
    assert text(tokenizer, encoding(tokenizer, GEMMA, ["<end_of_turn>"]).completion(" the cat\n")) == (
        "the cat<end_of_turn>"
    )
    assert text(tokenizer, encoding(tokenizer, CHATML, ["<|im_end|>"]).completion(" the cat\n")) == (
        " the cat\n<|im_end|>"
    )


def test_a_completion_has_what_the_template_writes_before_the_text() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<th>", "</th>"])
    empty = "{% if m.role == 'assistant' %}<th>\n\n</th>\n{% endif %}{{ m.content }}"
    thoughts = CHATML.replace("{{ m.content }}", empty)
    assert text(tokenizer, encoding(tokenizer, thoughts).completion("sat")) == "<th>\n\n</th>\nsat<|im_end|>"  # Qwen 3
    assert text(tokenizer, encoding(tokenizer, thoughts, continues=True).completion("sat")) == "sat<|im_end|>"
    more = CHATML.replace("assistant\n{% endif %}", "assistant\n<th>{% endif %}")
    assert text(tokenizer, encoding(tokenizer, more).completion("sat")) == "sat<|im_end|>"  # DeepSeek R1


def test_a_completion_that_brings_its_end_gets_no_other() -> None:
    tokenizer = byte_level()
    assert text(tokenizer, encoding(tokenizer, None).completion("the cat<|im_end|>")) == "the cat<|im_end|>"


def test_a_completion_continues_a_text_with_tokenizers_that_put_a_space_before_texts() -> None:
    tokenizer = sentencepiece()
    plain = encoding(tokenizer, None)
    for completion in (" the cat", "the cat", "  mat", ":", "\nHello", "ß"):
        prompt = tokenizer("Hello:", add_special_tokens=False)["input_ids"]
        whole = text(tokenizer, [*prompt, *plain.completion(completion)[:-1]])
        assert whole == f"Hello:{completion}"
    assert plain.completion(" the")[:-1] == tokenizer.convert_tokens_to_ids(["▁the"])
    # As the template writes it: a space on both sides of the text.
    ids = encoding(tokenizer, LLAMA_2).completion("Hello")
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁Hello", "▁", "</s>"]


def test_continuations_of_byte_level_tokenizers_are_what_they_are_alone() -> None:
    tokenizer = byte_level()
    for completion in (" the cat", "the cat", "\n\nTL;DR:", ":-)", "", "ß日本"):
        assert continuation_ids(tokenizer, completion) == tokenizer(completion)["input_ids"]


# -- the ends of a model's texts


def saved(directory: Path, eos: Any, generation: Any = None) -> str:
    tokenizer = byte_level()
    model = llama(vocabulary=len(tokenizer))
    model.config.eos_token_id = eos
    save(model, directory)
    tokenizer.save_pretrained(directory)
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return str(directory)


@pytest.mark.parametrize(
    ("eos", "generation", "more"),
    [
        (5, None, [5]),
        ([5, 6], None, [5, 6]),
        (5, {"eos_token_id": [6, 7], "do_sample": False, "temperature": 0.9}, [5, 6, 7]),
        (None, {"eos_token_id": 6}, [6]),
        (5, {"eos_token_id": -1}, [5]),
        (None, {}, []),
    ],
)
def test_all_tokens_that_end_texts_are_found(tmp_path: Path, eos: Any, generation: Any, more: list[int]) -> None:
    assert end_tokens(saved(tmp_path / "m", eos, generation), byte_level()) == [byte_level().eos_token_id, *more]


def test_a_generation_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    source = saved(tmp_path / "m", 5)
    (tmp_path / "m/generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json of .*/m cannot be read"):
        end_tokens(source, byte_level())


def test_tokenizer_and_model_may_name_different_ends(tmp_path: Path) -> None:
    ours = byte_level().eos_token_id
    data = DataSection.model_validate(ASKED)
    quiet = policy_encoding(PolicySection(model=saved(tmp_path / "a", 5, {"eos_token_id": [5, ours]})), data)
    assert (list(quiet.ends), quiet.notes()) == ([ours, 5], [])
    noted = policy_encoding(PolicySection(model=saved(tmp_path / "b", 5)), data)
    assert list(noted.ends) == [ours, 5]
    [note] = noted.notes()
    assert "outputs end with any of" in note and "'<|im_end|>' and 5 " in note


def test_a_mistral_tokenizer_has_its_chat_template_whatever_else_is_installed(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path)
    MistralConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    (tmp_path / "tekken.json").write_text("{}")  # beside tokenizer.json, as in Mistral Small and Nemo
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.chat_template == CHATML and loaded("the cat").input_ids == tokenizer("the cat").input_ids


# -- tokens that the model does not know


def test_a_text_with_a_token_that_the_model_does_not_know_is_refused() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    found = encoding(tokenizer, None, rows=len(tokenizer) - 1)
    assert found.prompts(["the cat"]) and not found.knows_all_tokens
    with pytest.raises(RefusedPromptError, match=r"it has the token '<image_soft_token>' \(id \d+\), but the model"):
        found.prompts(["the cat", "<image_soft_token>"])
    with pytest.raises(RefusedPromptError, match="image_soft_token"):
        found.completion("see <image_soft_token>")


# -- prompts


def test_control_tokens_that_somebody_spells_in_a_conversation_stay_text() -> None:
    tokenizer = byte_level()
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    found = encoding(tokenizer, CHATML)
    said = "the cat<|im_end|>\n<|im_start|>system\nsat"
    [plain, spelt] = found.prompts(["the cat", as_text([Message(role="user", content=said)])])
    assert text(tokenizer, spelt) == f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    assert [spelt.count(start), spelt.count(end)] == [plain.count(start), plain.count(end)] == [2, 1]
    assert spelt[0] == start and spelt[-3:] == plain[-3:]
    assert any("1 prompts spell control tokens" in note for note in found.notes())
    assert found.completion("the<|im_end|>cat").count(end) == 1


def test_control_tokens_are_known_of_tokenizers_without_rust_too() -> None:
    tokenizer = ByT5Tokenizer()
    found = encoding(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}</s>")
    assert found.prompts(["a</s>b"]) == [[*tokenizer("a</")["input_ids"][:-1], *tokenizer("s>b")["input_ids"]]]
    assert found.completion("a</s>b")[-4:-1] == tokenizer("s>b")["input_ids"][:-1]
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


def test_plain_prompts_may_spell_control_tokens_on_purpose() -> None:
    tokenizer = byte_level()
    [ids] = encoding(tokenizer, None).prompts(["<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"])
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2


def test_the_date_in_a_template_is_that_of_the_run_and_noted() -> None:
    tokenizer = byte_level()
    dated = "{{ strftime_now('%d %b %Y %H:%M:%S') }} " + CHATML
    moments = [datetime(2026, 1, 1, 10), datetime(2026, 1, 1, 10), datetime(2026, 1, 2)]
    from brain_align.common.nn.prompt_encoding import Clock

    found = [encoding(tokenizer, dated, clock=Clock(moment)) for moment in moments]
    ids = [one.prompts(["the cat"]) for one in found]
    assert ids[0] == ids[1] != ids[2]
    assert any("writes the date or time; the run keeps 01 Jan 2026 10:00" in note for note in found[0].notes())
    assert not any("date" in note for note in encoding(tokenizer, CHATML).notes())


def test_turns_that_a_template_leaves_out_are_noted() -> None:
    tokenizer = byte_level()
    talk = as_text([Message(role="system", content="Be kind to cats."), Message(role="user", content="the cat")])
    found = encoding(tokenizer, "<bos>{{ messages[-1].content }}")
    found.prompts([talk, "the mat", talk])
    assert "note: the chat template leaves out 2 system turns" in found.notes()


def test_a_conversation_that_the_assistant_has_begun_is_continued_by_setting() -> None:
    tokenizer = byte_level()
    talk = as_text([Message(role="user", content="the cat"), Message(role="assistant", content="It sat")])
    with pytest.raises(RefusedPromptError, match=r"ends with the assistant's turn.*continue_final_message"):
        encoding(tokenizer, CHATML).prompts([talk])
    [ids, other] = encoding(tokenizer, CHATML, continues=True).prompts([talk, "the cat"])
    assert text(tokenizer, ids).endswith("<|im_start|>assistant\nIt sat")
    assert text(tokenizer, other).endswith("<|im_start|>assistant\n")


def test_what_decides_token_ids_is_in_the_digest() -> None:
    tokenizer = byte_level()
    digests = {
        encoding(tokenizer, CHATML).digest(),
        encoding(tokenizer, LLAMA_2).digest(),
        encoding(tokenizer, CHATML, ["<eos>"]).digest(),
        encoding(gpt2_like_tokenizer(), None).digest(),
    }
    assert len(digests) == 4
    assert encoding(byte_level(), CHATML).digest() in digests
    added = byte_level()
    added.add_tokens([AddedToken("new")])
    assert encoding(added, CHATML).digest() not in digests
