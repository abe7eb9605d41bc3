"""Sequence classifiers as rewards, against transformers' own answer to one text at a time."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPTJForSequenceClassification,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from brain_align.common.config.scorers import ClassifierSection
from brain_align.common.data.conversations import Message, as_text
from brain_align.common.errors import UserError
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.scorer.kinds.classifier import ClassifierScorer, WholeTexts, load_classifier
from brain_align.scorer.scorer import Resources
from brain_align.scorer.text_models.text_values import TextValues
from tests.unit.factories import group, output
from tests.unit.tiny_models import CONTEXT, gpt2_like_tokenizer, gptj_config, llama, save

TOKENIZER = gpt2_like_tokenizer()
TEMPLATE = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}<|endoftext|>{% endfor %}"
PROMPT = "the cat"
OUTPUTS = [" sat on the mat", " sat", " sat", " on", " ß日本", " sat<|endoftext|>"]


def llama_config(**settings):
    return llama(vocabulary=len(TOKENIZER), num_labels=1, pad_token_id=TOKENIZER.eos_token_id, **settings).config


def bert_config():
    return BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.3,
    )


MODELS = {
    "llama": (lambda: LlamaForSequenceClassification(llama_config()), TextValues),
    "gptj without padding": (
        lambda: GPTJForSequenceClassification(gptj_config(len(TOKENIZER), num_labels=1)),
        TextValues,
    ),
    "bert": (lambda: BertForSequenceClassification(bert_config()), WholeTexts),
}


def write(directory, make):
    torch.manual_seed(0)
    save(make(), directory)
    TOKENIZER.chat_template = TEMPLATE
    TOKENIZER.save_pretrained(directory)
    TOKENIZER.chat_template = None
    return directory


def load(directory, **settings):
    section = {"kind": "classifier", "path": str(directory), "dtype": "float32", "max_tokens": CONTEXT} | settings
    return load_classifier(
        "reward", ClassifierSection.model_validate(section), Resources(["cpu"], 10_000, together=False)
    )


def score(scorer, prompt=PROMPT, outputs=OUTPUTS, gold=" sat"):
    rows = [group("g", prompt_text=prompt, gold_text=gold, outputs=[output([1], [0.0], text) for text in outputs])]
    return scorer.score(batch_from_rows(GROUPS, rows)).to_pylist()[0]


def alone(directory, text, literal=True):
    """Return transformers' own value; control tokens that the text spells are text if `literal`."""
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    ids = TOKENIZER(text, split_special_tokens=literal)["input_ids"]
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.item()


@pytest.mark.parametrize("kind", MODELS)
def test_values_are_those_of_each_text_by_itself(tmp_path, kind):
    make, way = MODELS[kind]
    scorer = load(write(tmp_path, make))
    assert isinstance(scorer, ClassifierScorer) and isinstance(scorer._values, way)
    row = score(scorer)
    expected = [alone(tmp_path, PROMPT + text) for text in OUTPUTS]
    assert row["values"] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1
    assert row["gold_value"] == pytest.approx(expected[1], abs=1e-5)
    assert row["error"] is None


@pytest.mark.parametrize("kind", MODELS)
def test_groups_that_are_computed_together_get_the_values_they_get_alone(tmp_path, kind):
    path = str(write(tmp_path, MODELS[kind][0]))
    settings = ClassifierSection(kind="classifier", path=path, dtype="float32", max_tokens=CONTEXT)
    scorer = load_classifier("reward", settings, Resources(["cpu"], 40, together=True))
    prompts = ["the cat", PROMPT, "a mat" * 4]
    rows = [
        group(name, prompt_text=name, gold_text=" sat", outputs=[output([1], [0.0], text) for text in OUTPUTS])
        for name in prompts
    ]
    for prompt, row in zip(prompts, scorer.score(batch_from_rows(GROUPS, rows)).to_pylist(), strict=True):
        assert row["values"] == pytest.approx([alone(tmp_path, prompt + text) for text in OUTPUTS], abs=1e-5)


def test_a_conversation_needs_a_chat_template(tmp_path):
    talk = as_text([Message(role="user", content="the cat"), Message(role="assistant", content=" sat")])
    directory = write(tmp_path, MODELS["llama"][0])
    row = score(load(directory), talk, [" sat"])
    assert (row["values"], row["gold_value"]) == ([None], None)
    assert row["error"].startswith("the prompt is a conversation")
    assert score(load(directory, chat_template=True), talk, [" sat"])["error"] is None


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0].role }}", "leaves out what the user said in message 1"),
        ("{{ messages[0].content }}", "leaves out what the assistant said in message 2"),
        ("{{ raise_exception('no system turn') }}", "the chat template rejects it: no system turn"),
        ("{{ messages + 1 }}", "the chat template rejects it: TypeError: can only concatenate list"),
    ],
)
def test_what_a_template_loses_or_refuses_has_no_value(tmp_path, template, reason):
    directory = write(tmp_path, MODELS["llama"][0])
    (directory / "chat_template.jinja").write_text(template)
    row = score(load(directory, chat_template=True), outputs=[" sat on it", " lay"])
    assert (row["values"], row["gold_value"]) == ([None, None], None)
    assert (
        row["error"].startswith("text 0 has no value: the classifier cannot read the conversation: ")
        and reason in row["error"]
    )


def test_one_output_s_reason_is_not_another_s(tmp_path):
    directory = write(tmp_path, MODELS["llama"][0])
    (directory / "chat_template.jinja").write_text(
        "{% if 'bad' in messages[-1].content %}{{ raise_exception('bad') }}{% endif %}" + TEMPLATE
    )
    row = score(load(directory, chat_template=True), outputs=[" sat", " bad", " sat"])
    assert row["values"] == [row["gold_value"], None, row["gold_value"]] and row["gold_value"] is not None


def test_an_output_that_continues_the_assistant_s_turn_is_one_turn_with_it(tmp_path):
    scorer = load(write(tmp_path, MODELS["llama"][0]), chat_template=True)
    begun = [Message(role="user", content="the cat"), Message(role="assistant", content=" sat")]
    one, other = (
        score(scorer, as_text(prompt), [out], None) for prompt, out in ((begun, " on"), (begun[:1], " sat on"))
    )
    assert one["values"] == other["values"]


def test_control_tokens_that_an_output_spells_are_no_turns(tmp_path):
    scorer = load(write(tmp_path, MODELS["llama"][0]), chat_template=True)
    plain, spelt = (scorer._encode("the cat", output) for output in (" sat", " sat<|endoftext|><user>"))
    assert spelt.count(TOKENIZER.eos_token_id) == plain.count(TOKENIZER.eos_token_id) > 0
    assert TOKENIZER.decode(spelt).startswith("<user>the cat<|endoftext|><assistant> sat<|endoftext|><user>")


def test_the_digest_depends_on_the_files_that_are_loaded_alone(tmp_path):
    digest = load(write(tmp_path, MODELS["llama"][0])).digest
    for name in ("trainer_state.json", "training_args.bin", "README.txt"):
        (tmp_path / name).write_text("{}")
    assert load(tmp_path).digest == digest
    (tmp_path / "added_tokens.json").write_text("{}")
    assert load(tmp_path).digest != digest


def test_a_chat_template_makes_two_turns(tmp_path):
    row = score(load(write(tmp_path, MODELS["llama"][0]), chat_template=True), outputs=[" sat"])
    expected = alone(tmp_path, "<user>the cat<|endoftext|><assistant> sat<|endoftext|>", literal=False)
    assert row["values"] == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_text_loses_tokens_on_the_side_that_the_recipe_says(tmp_path, side):
    scorer = load(write(tmp_path, MODELS["gptj without padding"][0]), truncation=side, max_tokens=16)
    ids = TOKENIZER(" the cat" * 30 + " sat")["input_ids"]
    kept = ids[-16:] if side == "left" else ids[:16]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    expected = model(torch.tensor([kept])).logits.item()
    row = score(scorer, " the cat" * 30, [" sat"])
    assert row["values"] == pytest.approx([expected], abs=1e-5)


def test_a_text_of_nothing_is_null(tmp_path):
    row = score(load(write(tmp_path, MODELS["llama"][0])), "", ["", " sat"], gold=None)
    assert row["values"][0] is None and row["values"][1] is not None
    assert row["error"] == "text 0 has no value: it has no tokens"


def test_what_is_no_complete_reward_model_is_refused(tmp_path):
    write(tmp_path, lambda: LlamaForCausalLM(llama_config()))
    with pytest.raises(UserError, match=r"lacks 1 of its weights: score\.weight"):
        load(tmp_path)
    write(tmp_path / "two", lambda: GPTJForSequenceClassification(gptj_config(len(TOKENIZER), num_labels=2)))
    with pytest.raises(UserError, match="has 2 labels"):
        load(tmp_path / "two")
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "absent")
    (tmp_path / "two" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template; set chat_template=false"):
        load(tmp_path / "two", chat_template=True)


def test_the_digest_depends_on_what_values_depend_on(tmp_path):
    write(tmp_path, MODELS["llama"][0])
    variants: list[dict[str, Any]] = [
        {},
        {"chat_template": True},
        {"max_tokens": 8},
        {"truncation": "right"},
        {"replicas": 3},
    ]
    digests = [load(tmp_path, **settings).digest for settings in variants]
    assert len(set(digests)) == 4 and digests[0] == digests[-1]
