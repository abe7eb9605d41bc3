import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.errors import UserError
from brain_align.common.nn.models.adapters import attach_new_adapter, load_adapter, save_adapter
from brain_align.common.nn.models.causal_lm import check_tokenizer, load_causal_lm, load_tokenizer
from brain_align.common.nn.models.configuration import context_length
from tests.unit.common.nn.logprob_calls import group_logprobs
from tests.unit.tiny_models import CONTEXT, gpt2_like_tokenizer, gptj, gptj_config, llama, save

ADAPTER = AdapterSection(r=4, alpha=8)  # all seven linear layers
OUTPUTS = [[7, 8, 9], [10]]


@pytest.fixture(scope="module")
def saved_llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    save(llama(attention_dropout=0.5), directory)
    return directory


def trained(model):
    """Pretend that the adapter was trained."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_B" in name:
                parameter.fill_(0.01 * (index + 1))
    return model


# -- loading


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_is_loaded_as_it_was(saved_llama, dtype):
    model = load_causal_lm(str(saved_llama), dtype)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    expected = llama()
    if dtype == "bfloat16":  # the weights alone: rotary frequencies stay in float32
        for parameter in expected.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    assert torch.equal(group_logprobs(model, [3, 4], OUTPUTS), group_logprobs(expected, [3, 4], OUTPUTS))


def test_dropout_is_gone_even_in_training_mode(saved_llama, tmp_path):
    save(gptj(attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5), tmp_path)
    for directory in (saved_llama, tmp_path):
        model = load_causal_lm(str(directory), "float32")
        quiet = group_logprobs(model, [3, 4], OUTPUTS)
        assert torch.equal(group_logprobs(model.train(), [3, 4], OUTPUTS), quiet)


def test_a_missing_directory_is_named_and_the_hub_is_not_asked():
    for source in ("/nowhere/model", "runs/somewhere/model", "./model"):
        with pytest.raises(UserError, match=f"the directory {source} does not exist"):
            load_causal_lm(source, "float32")
        with pytest.raises(UserError, match=f"the directory {source} does not exist"):
            load_tokenizer(source)


def test_a_file_in_place_of_a_directory_is_refused(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(UserError, match="is a file; give the directory that holds it"):
        load_causal_lm(str(tmp_path / "model"), "float32")


def test_a_directory_without_a_model_or_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="No model configuration could be loaded"):
        load_causal_lm(str(tmp_path), "float32")
    with pytest.raises(UserError, match="No tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_model_without_all_its_weights_is_refused(saved_llama, tmp_path):
    (tmp_path / "config.json").write_text((saved_llama / "config.json").read_text())
    weights = load_file(saved_llama / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its weights: model.layers.1.mlp.down_proj.weight"):
        load_causal_lm(str(tmp_path), "float32")


def test_pickled_weights_alone_are_read_as_tensors(saved_llama, tmp_path):
    (tmp_path / "config.json").write_text((saved_llama / "config.json").read_text())
    torch.save(load_file(saved_llama / "model.safetensors"), tmp_path / "pytorch_model.bin")
    model = load_causal_lm(str(tmp_path), "float32")
    assert torch.equal(group_logprobs(model, [3, 4], OUTPUTS), group_logprobs(llama(), [3, 4], OUTPUTS))


def test_weights_of_another_shape_are_refused(saved_llama, tmp_path):
    save(llama(vocabulary=50), tmp_path)
    (tmp_path / "config.json").write_text((saved_llama / "config.json").read_text())
    with pytest.raises(
        UserError, match=r"do not fit its config.json: lm_head.weight is \[50, 32\], expected \[96, 32\]"
    ):
        load_causal_lm(str(tmp_path), "float32")


def test_architectures_whose_log_probabilities_would_be_wrong_are_refused(tmp_path):
    capped = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
        initializer_range=0.5,
    )
    save(Gemma2ForCausalLM(capped), tmp_path / "capped")
    with pytest.raises(UserError, match=r"gemma2 model .* transforms its logits"):
        load_causal_lm(str(tmp_path / "capped"), "float32")


def test_context_length_by_either_name():
    assert context_length(llama().config) == CONTEXT
    assert context_length(gptj_config()) == CONTEXT


# -- tokenizers


def test_tokenizer_checks(tmp_path):
    tokenizer = gpt2_like_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded("the cat<|endoftext|>").input_ids == tokenizer("the cat<|endoftext|>").input_ids

    size = len(tokenizer)
    assert check_tokenizer(tokenizer, gptj_config(vocabulary=size), "here") == []
    assert check_tokenizer(tokenizer, GPT2Config(vocab_size=size + 7, eos_token_id=[1, 2]), "here") == []
    assert check_tokenizer(tokenizer, GPT2Config(vocab_size=size, eos_token_id=None), "here") == []
    with pytest.raises(UserError, match=f"ids up to {size - 1}, the model's vocabulary has {size - 2}"):
        check_tokenizer(tokenizer, gptj_config(vocabulary=size - 2), "here")
    with pytest.raises(
        UserError, match=rf"ends texts with token {size - 1}, but the model's .* has {size - 1} entries"
    ):
        check_tokenizer(tokenizer, gptj_config(vocabulary=size - 1), "here")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    [note] = check_tokenizer(tokenizer, gptj_config(vocabulary=size), "here")
    assert (
        note
        == f"note: the model has {size} tokens, its tokenizer also '<image_soft_token>': texts with these are refused"
    )
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        check_tokenizer(tokenizer, gptj_config(vocabulary=size), "here")


# -- adapters


def test_a_new_adapter_depends_on_its_seed_alone():
    def weights(seed, noise):
        model = llama()
        torch.manual_seed(noise)
        policy = attach_new_adapter(model, ADAPTER, seed)
        return {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}

    first, again, other = weights(1, 5), weights(1, 6), weights(2, 5)
    assert len(first) == 2 * 2 * 7  # A and B, layers, targets
    assert all("lora_" in name for name in first)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name, value in first.items():
        assert torch.equal(value, other[name]) == ("lora_B" in name)
        bound = 1 / value.shape[1] ** 0.5  # kaiming_uniform_(a=sqrt(5)): what PEFT itself uses
        assert value.abs().max() == 0 if "lora_B" in name else 0.8 * bound < value.abs().max() <= bound


def test_absent_targets_are_named_with_those_that_exist():
    for targets in (["q_proj", "c_attn"], ["c_attn"]):
        settings = AdapterSection(r=2, alpha=2, targets=targets)
        with pytest.raises(UserError, match=r"llama model has no c_attn; it has down_proj, gate_proj"):
            attach_new_adapter(llama(), settings, seed=0)
    with pytest.raises(UserError, match=r"gptj model has no o_proj; it has fc_in, fc_out"):
        attach_new_adapter(gptj(), AdapterSection(r=2, alpha=2, targets=["q_proj", "o_proj"]), seed=0)
    with pytest.raises(UserError, match="no lm_head"):
        attach_new_adapter(llama(), AdapterSection(r=2, alpha=2, targets=["lm_head"]), seed=0)


def test_a_saved_adapter_is_loaded_by_us_and_by_peft(tmp_path):
    policy = trained(attach_new_adapter(llama(), ADAPTER, seed=3))
    expected = group_logprobs(policy, [3, 4], OUTPUTS)
    save_adapter(policy, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]

    ours = load_adapter(llama(), tmp_path)
    assert torch.equal(group_logprobs(ours, [3, 4], OUTPUTS), expected)
    assert not [name for name, p in ours.named_parameters() if p.requires_grad]
    assert not ours.training
    peft = PeftModel.from_pretrained(llama(), tmp_path)
    assert torch.equal(group_logprobs(peft, [3, 4], OUTPUTS), expected)


def test_an_adapter_keeps_its_base_s_revision_apart_from_the_name(tmp_path):
    model = llama()
    model.name_or_path = "org/base@v1"
    save_adapter(attach_new_adapter(model, ADAPTER, seed=3), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "v1")


def test_a_loaded_adapter_can_be_trained_on(tmp_path):
    save_adapter(attach_new_adapter(llama(), ADAPTER, seed=3), tmp_path)
    policy = load_adapter(llama(), tmp_path, trainable=True)
    names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 2 * 7
    group_logprobs(policy, [3], OUTPUTS).sum().backward()


def test_an_adapter_on_a_bfloat16_model_keeps_float32_weights(tmp_path):
    save_adapter(attach_new_adapter(llama().to(torch.bfloat16), ADAPTER, seed=3), tmp_path)
    assert {value.dtype for value in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}


def test_the_same_weights_give_the_same_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        save_adapter(trained(attach_new_adapter(llama(), ADAPTER, seed=3)), tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    # PEFT keeps a set of strings here, whose order differs between processes.
    assert settings["target_modules"] == sorted(ADAPTER.targets)
    assert not [name for name, value in settings.items() if isinstance(value, set)]
    assert settings["lora_dropout"] == 0
    assert settings["bias"] == "none"
    assert settings["inference_mode"] is True


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_adapters_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="could not be loaded"):
        load_adapter(llama(), tmp_path)
    save_adapter(attach_new_adapter(llama(), ADAPTER, seed=3), tmp_path)
    with pytest.raises(UserError, match="was made for another model"):
        load_adapter(gptj(), tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    del weights[min(weights)]
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="made for another model: 1 weights are missing"):
        load_adapter(llama(), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="could not be loaded"):
        load_adapter(llama(), tmp_path)
