"""Classifiers with short contexts, odd tokenizers and texts that they cannot read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    FalconConfig,
    LlamaForSequenceClassification,
    OPTConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
    XLNetConfig,
)

from brain_align.common.config.scorers import ClassifierSection
from brain_align.common.errors import UserError
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.scorer.catalogue import check_scorer, kind_of
from brain_align.scorer.kinds.classifier import ClassifierScorer, WholeTexts, load_classifier
from brain_align.scorer.scorer import NoValueError, Resources
from brain_align.scorer.text_models.one_by_one import values_or_reasons
from brain_align.scorer.text_models.positions import longest_text
from tests.unit.factories import group, output
from tests.unit.tiny_models import gpt2_like_tokenizer, llama, save

TOKENIZER = gpt2_like_tokenizer()
SMALL: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_labels": 1,
    "initializer_range": 0.3,
}
DISTIL: dict[str, Any] = {"vocab_size": len(TOKENIZER), "dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 2}
BART: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
DEBERTA: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
LONG = " the cat sat on the mat" * 12


def roberta(**settings: Any) -> RobertaConfig:
    return RobertaConfig(**SMALL | {"max_position_embeddings": 34, "pad_token_id": 1} | settings)


def bert(**settings: Any) -> BertConfig:
    return BertConfig(**SMALL | {"max_position_embeddings": 32, "pad_token_id": 0} | settings)


def written(folder: Path, config: PreTrainedConfig) -> Path:
    torch.manual_seed(0)
    save(AutoModelForSequenceClassification.from_config(config), folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def section(folder: Path, **settings: Any) -> ClassifierSection:
    return ClassifierSection.model_validate({"kind": "classifier", "path": str(folder), "dtype": "float32"} | settings)


def load(folder: Path, **settings: Any) -> ClassifierScorer:
    return load_classifier("reward", section(folder, **settings), Resources(["cpu"], 10_000, together=False))


def score(scorer: ClassifierScorer, prompt: str, *outputs: str) -> dict[str, Any]:
    row = group("g", prompt_text=prompt, gold_text=None, outputs=[output([1], [0.0], text) for text in outputs])
    scored: dict[str, Any] = scorer.score(batch_from_rows(GROUPS, [row])).to_pylist()[0]
    return scored


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (BertConfig(), 512),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (DistilBertConfig(), 512),
        (DebertaV2Config(position_biased_input=False, relative_attention=True), None),
        (DebertaV2Config(position_biased_input=True, relative_attention=True), 512),
        (T5Config(), None),
        (XLNetConfig(), None),
        (FalconConfig(alibi=True), None),
        (BartConfig(**BART), 1024),
        (OPTConfig(num_hidden_layers=1), 2048),
        (llama().config, 64),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_a_model_reads_as_many_tokens_as_it_has_positions_for(config: PreTrainedConfig, longest: int | None) -> None:
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if hasattr(config, name):
            setattr(config, name, 1)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert longest_text(model) == longest


@pytest.mark.parametrize("config", [bert(), roberta()], ids=["bert", "roberta"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_truncated_to_the_model_s_positions(tmp_path: Path, config: PreTrainedConfig, side: str) -> None:
    folder = written(tmp_path, config)
    check_scorer("reward", section(folder))
    row = score(load(folder, truncation=side), "TL;DR:", LONG, " sat")
    ids = TOKENIZER(f"TL;DR:{LONG}")["input_ids"]
    kept = ids[-32:] if side == "left" else ids[:32]
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(folder).eval()(torch.tensor([kept])).logits.item()
    assert row["values"][0] == pytest.approx(expected, abs=1e-5)
    assert None not in row["values"] and row["error"] is None


def test_more_tokens_than_a_model_reads_are_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = written(tmp_path, roberta())
    message = r"scorers\.reward\.max_tokens=33 is more than the 32 tokens that .* reads; lower it, or leave it out"
    with pytest.raises(UserError, match=message):
        check_scorer("reward", section(folder, max_tokens=33))
    with pytest.raises(UserError, match=message):
        load(folder, max_tokens=33)
    check_scorer("reward", section(folder, max_tokens=32))
    assert load(folder, max_tokens=32)._encoding.limit == load(folder)._encoding.limit == 32
    assert load(folder).digest != load(folder, max_tokens=32).digest, "the default's digest is that of its setting"


def test_a_model_of_relative_positions_reads_what_the_recipe_says(tmp_path: Path) -> None:
    settings = SMALL | DEBERTA | {"position_biased_input": False, "max_position_embeddings": 16, "pad_token_id": 0}
    folder = written(tmp_path, DebertaV2Config(**settings))
    scorer = load(folder, max_tokens=40)
    assert scorer._encoding.limit == 40
    assert score(scorer, "TL;DR:", LONG)["values"][0] is not None


def test_a_classifier_of_several_labels_is_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = written(tmp_path, bert(num_labels=2, id2label={0: "bad", 1: "good"}))
    for refused in (lambda: check_scorer("reward", section(folder)), lambda: load(folder)):
        with pytest.raises(UserError, match=r"has 2 labels \(bad, good\), but a reward model has one: train it with"):
            refused()


@pytest.mark.parametrize("padding", [None, -1])
def test_padding_that_is_no_token_or_missing_changes_no_value(tmp_path: Path, padding: int | None) -> None:
    config = llama(vocabulary=len(TOKENIZER), num_labels=1, pad_token_id=padding).config
    torch.manual_seed(0)
    save(LlamaForSequenceClassification(config), tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    scorer = load(tmp_path)
    texts = [" sat", " sat on the mat", ""]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    model.config.pad_token_id = None  # one text at a time needs none
    with torch.no_grad():
        expected = [model(torch.tensor([TOKENIZER(f"the cat{text}")["input_ids"]])).logits.item() for text in texts]
    assert score(scorer, "the cat", *texts)["values"] == pytest.approx(expected, abs=1e-5)
    whole = WholeTexts(model, 1000)
    assert whole.of([[1, 2], [3]]) == pytest.approx([*whole.of([[1, 2]]), *whole.of([[3]])], abs=1e-5)


def test_a_configuration_that_no_model_can_be_made_of_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, bert())
    file = folder / "config.json"
    config = file.read_text(encoding="utf-8").replace('"pad_token_id": 0', '"pad_token_id": 999')
    file.write_text(config, encoding="utf-8")
    with pytest.raises(UserError, match=r"Padding_idx must be within"):
        load(folder)


@pytest.mark.parametrize(("prompt", "said"), [("the cat", " sat<|endoftext|>"), ("the cat<|endof", "text|> sat")])
def test_control_tokens_that_an_output_spells_are_text_and_those_of_a_prompt_are_not(
    tmp_path: Path, prompt: str, said: str
) -> None:
    scorer = load(written(tmp_path, bert()))
    literal = TOKENIZER(prompt + said, split_special_tokens=True)["input_ids"]
    assert scorer._encode(prompt, said) == literal
    end = TOKENIZER.eos_token_id
    assert end not in literal
    of_prompt = scorer._encode("<|endoftext|>the", said)
    assert isinstance(of_prompt, list) and of_prompt.count(end) == 1
    assert len(scorer._encode(LONG, said)) == 32  # type: ignore[arg-type]


def test_a_text_that_a_model_or_tokenizer_cannot_read_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = load(written(tmp_path, bert()))
    expected = score(scorer, "the cat", " sat", " on")["values"]
    of = WholeTexts.of

    def picky(self: WholeTexts, texts: list[list[int]]) -> list[float]:
        if any(len(text) > 12 for text in texts):
            raise RuntimeError("The size of tensor a must match\nand more")
        return of(self, texts)

    monkeypatch.setattr(WholeTexts, "of", picky)
    row = score(scorer, "the cat", " sat", LONG, " on")
    assert row["values"][::2] == pytest.approx(expected, abs=1e-5) and row["values"][1] is None
    assert row["error"] == "text 1 has no value: RuntimeError: The size of tensor a must match"


def test_items_that_fail_are_found_and_failures_of_devices_are_raised() -> None:
    def compute(items: Any) -> list[float]:
        if bad := [item for item in items if isinstance(item, Exception)]:
            raise bad[0]
        return [float(item) for item in items]

    found = values_or_reasons(compute, [1, ValueError("odd"), 2, 3, KeyError("k")])
    assert [one if isinstance(one, float) else str(one) for one in found] == [
        1, "ValueError: odd", 2, 3, "KeyError: 'k'"
    ]  # fmt: skip
    assert values_or_reasons(compute, []) == []
    for error in (MemoryError(), torch.OutOfMemoryError("no"), RuntimeError("CUDA error: device-side assert")):
        with pytest.raises(type(error)):
            values_or_reasons(compute, [1, error])


def test_a_batch_that_is_too_large_for_memory_is_computed_in_halves() -> None:
    def compute(items: Any) -> list[float]:
        if len(items) > 2:
            raise torch.OutOfMemoryError("no memory")
        return [float(item) for item in items]

    assert values_or_reasons(compute, [1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]


def test_the_template_is_tried_on_prompts(tmp_path: Path) -> None:
    folder = written(tmp_path, bert())
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for turn in messages %}{{ turn.content }}{% endfor %}",
        encoding="utf-8",
    )
    settings = section(folder, chat_template=True)
    read = kind_of(settings).reading(settings)
    assert read is not None
    read("the cat")
    with pytest.raises(NoValueError, match="the chat template rejects it: System role not supported"):
        read('[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "the cat"}]')
    assert kind_of(settings).reading(section(folder)) is None


def test_max_tokens_without_room_for_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path, bert())
    monkeypatch.setattr("brain_align.scorer.kinds.classifier.tokens_around", lambda _: ([1], [2]))
    with pytest.raises(UserError, match=r"scorers\.reward\.max_tokens=2 has no room for text: the tokenizer adds 2"):
        check_scorer("reward", section(folder, max_tokens=2))
