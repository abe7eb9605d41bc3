"""Whole models are written with all that the model has, under the names that its own files have."""

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma4TextConfig,
    GPTNeoXConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3_5TextConfig,
)

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.errors import UserError
from brain_align.common.nn.models.adapters import attach_new_adapter, load_adapter, merged, save_adapter
from brain_align.common.nn.models.causal_lm import load_causal_lm
from brain_align.common.nn.models.saving import check_saveable, name_in_model, save_causal_lm
from tests.unit.tiny_models import llama, save

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
IDS = torch.tensor([[3, 4, 7, 8, 9, 10]])


def gemma4() -> PreTrainedConfig:
    """It has a constant per layer, which is no parameter but stands in its files."""
    per_layer = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96}
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "num_key_value_heads": 2, "head_dim": 8}
    return Gemma4TextConfig(**SHAPE, **per_layer, **kinds, global_head_dim=8, final_logit_softcapping=None)


def qwen3_5() -> PreTrainedConfig:
    """Its files hold the text model of a larger one."""
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
    kinds = {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 2, "head_dim": 8}
    return Qwen3_5TextConfig(**SHAPE, **linear, **kinds, linear_value_head_dim=8)


def pythia() -> PreTrainedConfig:
    """Its files call the output layer otherwise than transformers do."""
    return GPTNeoXConfig(**SHAPE)


def falcon() -> PreTrainedConfig:
    return FalconConfig(**SHAPE, alibi=False)


KINDS = {  # a configuration, and what a name is in the files
    "gemma4": (gemma4, r"^", ""),
    "qwen3_5": (qwen3_5, r"^model\.", "model.language_model."),
    "pythia": (pythia, r"^lm_head\.", "embed_out."),
    "falcon": (falcon, r"^", ""),
}


@pytest.fixture(params=KINDS)
def source(request, tmp_path):
    """A directory with a model as its authors have published it."""
    make, pattern, replacement = KINDS[request.param]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make())
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith("layer_scalar"):
            value.fill_(0.4)
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path / "source")
    state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    save_file(state, tmp_path / "source/model.safetensors", metadata={"format": "pt"})
    return tmp_path / "source"


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def assert_equal_files(directory, source) -> None:
    written, expected = load_file(directory / "model.safetensors"), load_file(source / "model.safetensors")
    assert sorted(written) == sorted(expected)
    assert all(torch.equal(written[name], expected[name]) for name in expected)


@pytest.mark.parametrize("given", [False, True])
def test_what_is_written_has_the_names_and_tensors_of_the_model_s_own_files(source, tmp_path, given) -> None:
    model = load_causal_lm(str(source), "float32")
    target = tmp_path / "saved"
    target.mkdir()
    save_causal_lm(model, target, model.named_parameters() if given else None)
    assert_equal_files(target, source)
    assert torch.equal(logits(load_causal_lm(str(target), "float32")), logits(model))


def test_merged_models_have_the_buffers_and_names_of_their_source(source, tmp_path) -> None:
    targets = {"falcon": ["query_key_value"], "gpt_neox": ["query_key_value", "dense"]}
    kind = json.loads((source / "config.json").read_text())["model_type"]
    adapted = attach_new_adapter(
        load_causal_lm(str(source), "float32"), AdapterSection(r=2, targets=targets.get(kind, ["q_proj"])), seed=1
    )
    (tmp_path / "adapter").mkdir()
    save_adapter(adapted, tmp_path / "adapter")
    again = load_adapter(load_causal_lm(str(source), "float32"), tmp_path / "adapter")
    (tmp_path / "saved").mkdir()
    save_causal_lm(merged(again), tmp_path / "saved")
    assert_equal_files(tmp_path / "saved", source)  # a new adapter changes nothing


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_of_the_embedding_leaves_the_output_layer_as_it_is(tmp_path, tied) -> None:
    save(llama(tie_word_embeddings=tied), tmp_path / "source")
    source = str(tmp_path / "source")
    policy = get_peft_model(load_causal_lm(source, "float32"), LoraConfig(r=2, target_modules=["embed_tokens"]))
    for name, weight in policy.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.5)
    expected = logits(policy)
    (tmp_path / "merged").mkdir()
    save_causal_lm(merged(policy), tmp_path / "merged")
    written = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert (expected - logits(load_causal_lm(source, "float32"))).abs().max() > 0.1
    torch.testing.assert_close(written, expected, rtol=1e-4, atol=1e-4)


def test_names_in_files_are_known_by_what_the_model_calls_them(source) -> None:
    model = load_causal_lm(str(source), "float32")
    names = {name_in_model(model.config, name) for name in load_file(source / "model.safetensors")}
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert names == set(model.state_dict()) - tied


def test_weights_that_are_not_the_model_s_are_refused(tmp_path) -> None:
    save(llama(), tmp_path)
    model = load_causal_lm(str(tmp_path), "float32")
    with pytest.raises(RuntimeError, match="no weight of the model"):
        save_causal_lm(model, tmp_path, [("model.other", torch.zeros(1))])


def test_an_output_layer_of_its_own_is_not_written_as_tied(tmp_path) -> None:
    model = llama(tie_word_embeddings=False)
    model.config.tie_word_embeddings = True  # as some published models say of themselves
    save(model, tmp_path / "source")
    loaded = load_causal_lm(str(tmp_path / "source"), "float32")
    (tmp_path / "saved").mkdir()
    save_causal_lm(loaded, tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(logits(load_causal_lm(str(tmp_path / "saved"), "float32")), logits(model))


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_are_written_once(tmp_path, tied) -> None:
    save(llama(tie_word_embeddings=tied), tmp_path / "source")
    (tmp_path / "saved").mkdir()
    save_causal_lm(load_causal_lm(str(tmp_path / "source"), "float32"), tmp_path / "saved")
    assert ("lm_head.weight" in load_file(tmp_path / "saved/model.safetensors")) is not tied
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is tied


def test_merged_experts_are_refused_before_any_weight_is_read() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MixtralConfig(**SHAPE, num_key_value_heads=2, num_local_experts=2))
        with pytest.raises(UserError, match="files of a mixtral model"):
            check_saveable(model)
        for make, *_ in KINDS.values():
            check_saveable(AutoModelForCausalLM.from_config(make()))
