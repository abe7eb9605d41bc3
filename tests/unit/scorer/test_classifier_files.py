"""What lies in a classifier's directory: leftovers that change no value, adapters, rotary frequencies of a window."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    GPTNeoXConfig,
    ModernBertConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    RobertaConfig,
)

from brain_align.common.config.scorers import ClassifierSection
from brain_align.common.errors import UserError
from brain_align.scorer.catalogue import check_scorer
from brain_align.scorer.kinds.classifier import load_classifier
from brain_align.scorer.scorer import Resources
from tests.unit.tiny_models import gpt2_like_tokenizer, gptj_config, llama, save

TOKENIZER = gpt2_like_tokenizer()
END = TOKENIZER.eos_token_id
CONTEXT, SWITCH = 64, 16
SHAPE = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "pad_token_id": END,
    "bos_token_id": END,
    "eos_token_id": END,
    "num_labels": 1,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32}
DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
CAUSAL = {"pad_token_id": END, "num_labels": 1}
ROWS = torch.tril(torch.ones(1, 1, CONTEXT, CONTEXT, dtype=torch.bool))
LOW, HEAD = torch.tensor(-1e9), torch.ones(len(TOKENIZER), 32)
POSITIONS = torch.arange(CONTEXT)[None]
LEFTOVERS: dict[str, tuple[PreTrainedConfig, dict[str, torch.Tensor]]] = {
    "gpt2": (
        GPT2Config(**SHAPE | GPT2),
        {"transformer.h.0.attn.bias": ROWS, "transformer.h.1.attn.masked_bias": LOW},
    ),
    "gptj": (
        gptj_config(len(TOKENIZER), **CAUSAL),
        {"transformer.h.0.attn.bias": ROWS, "transformer.h.0.attn.masked_bias": LOW, "lm_head.weight": HEAD},
    ),
    "gpt_neox": (
        GPTNeoXConfig(**SHAPE),
        {
            "gpt_neox.layers.0.attention.bias": ROWS,
            "gpt_neox.layers.0.attention.masked_bias": LOW,
            "gpt_neox.layers.1.attention.rotary_emb.inv_freq": torch.ones(1),
            "embed_out.weight": HEAD,
        },
    ),
    "llama": (
        llama(vocabulary=len(TOKENIZER), **CAUSAL).config,
        {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "lm_head.weight": HEAD},
    ),
    "opt": (OPTConfig(**SHAPE | OPT), {"lm_head.weight": HEAD}),
    "bert": (
        BertConfig(**SHAPE),
        {"bert.embeddings.position_ids": POSITIONS, "cls.predictions.bias": HEAD[:, 0].contiguous()},
    ),
    "roberta": (
        RobertaConfig(**SHAPE | {"pad_token_id": 1}),
        {"roberta.embeddings.position_ids": POSITIONS, "roberta.pooler.dense.weight": torch.ones(32, 32)},
    ),
    "distilbert": (DistilBertConfig(**SHAPE | DISTILBERT), {"vocab_transform.weight": torch.ones(32, 32)}),
    "deberta-v2": (
        DebertaV2Config(**SHAPE),
        {"deberta.embeddings.position_ids": POSITIONS, "lm_predictions.lm_head.bias": HEAD[:, 0].contiguous()},
    ),
    "modernbert": (ModernBertConfig(**SHAPE), {"decoder.bias": HEAD[:, 0].contiguous()}),
}
"""Tensors of old versions and of other heads, as found in published files, by kind of model."""


def section(directory, **settings):
    return ClassifierSection(kind="classifier", path=str(directory), dtype="float32", **settings)


def load(directory, **settings):
    return load_classifier("reward", section(directory, **settings), Resources(["cpu"], 10_000, together=False))


def write(directory, config):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    save(model, directory)
    TOKENIZER.save_pretrained(directory)
    return model


def values(scorer, texts=([3, 4, 5, 6], [3, 4, 7])):
    return scorer._values.of([list(text) for text in texts])


def change(directory, more):
    file = directory / "model.safetensors"
    save_file(load_file(file) | more, file, {"format": "pt"})


@pytest.mark.parametrize("kind", LEFTOVERS)
def test_leftovers_change_no_value(kind, tmp_path):
    config, more = LEFTOVERS[kind]
    model = write(tmp_path, config)
    check_scorer("reward", section(tmp_path))
    clean = values(load(tmp_path))
    with torch.no_grad():
        expected = [model(torch.tensor([text])).logits.item() for text in ([3, 4, 5, 6], [3, 4, 7])]
    assert clean == pytest.approx(expected, abs=1e-5)
    change(tmp_path, more)
    assert values(load(tmp_path)) == pytest.approx(clean, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "model.layers.1.self_attn.q_proj.bias"),
        ("llama", "model.layers.2.mlp.up_proj.weight"),
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "score.bias"),
        ("bert", "bert.encoder.layer.2.output.dense.bias"),
    ],
)
def test_weights_of_layers_that_the_configuration_leaves_out_are_refused(kind, name, tmp_path):
    write(tmp_path, LEFTOVERS[kind][0])
    change(tmp_path, {name: torch.ones(32)})
    with pytest.raises(UserError, match=rf"holds 1 weights that a {kind} model .* has no use for \({name}\)"):
        load(tmp_path)


def test_an_adapter_alone_is_refused_with_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "org/base"})
    )
    for refused in (lambda: check_scorer("reward", section(tmp_path)), lambda: load(tmp_path)):
        with pytest.raises(UserError, match=r"an adapter, not a whole .* merge it with its base \(org/base\)"):
            refused()


def test_rotary_frequencies_are_those_of_the_longest_text_that_is_read(tmp_path):
    rope = {
        **{"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": SWITCH},
        **{"short_factor": [1.0] * 4, "long_factor": [1.0, 4.0, 7.0, 10.0]},
    }
    config = Phi3Config(**SHAPE, num_key_value_heads=2, rope_parameters=rope, original_max_position_embeddings=SWITCH)
    model = write(tmp_path, config)
    texts = [list(range(3, 13)), list(range(5, 12))]

    def expected(padding):
        rows = [torch.tensor([text + [END] * padding]) for text in texts]
        with torch.no_grad():
            return [model(row, attention_mask=(row != END).long()).logits.item() for row in rows]

    short, long = expected(0), expected(SWITCH)
    assert short != pytest.approx(long, abs=1e-2)
    assert values(load(tmp_path, max_tokens=SWITCH), texts) == pytest.approx(short, abs=1e-5)
    assert values(load(tmp_path, max_tokens=SWITCH + 1), texts) == pytest.approx(long, abs=1e-5)
    assert values(load(tmp_path), texts) == pytest.approx(long, abs=1e-5), "as many tokens as the model reads"
