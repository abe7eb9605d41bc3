"""What is known of a policy before its weights are read."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import DeepseekV3Config, GPT2Config, GPTNeoXConfig, MixtralConfig, PreTrainedConfig

from brain_align.common.config.inputs import PolicySection
from brain_align.common.errors import UserError
from brain_align.common.nn.models.adapters import load_adapter
from brain_align.common.nn.models.policy_check import check_policy
from tests.unit.common.nn.logprob_calls import group_logprobs
from tests.unit.common.nn.test_saving import SHAPE
from tests.unit.tiny_models import llama, save

EXPERTS = MixtralConfig(**SHAPE, num_key_value_heads=2, num_local_experts=2)
DEEPSEEK = DeepseekV3Config(**SHAPE, n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1)
GPT2 = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
PYTHIA = GPTNeoXConfig(**SHAPE)
OUTPUTS = {"targets": ["o_proj"]}


def policy(tmp_path, config: PreTrainedConfig, **settings) -> PolicySection:
    """A model of which there is only the configuration."""
    config.save_pretrained(tmp_path)
    return PolicySection(model=str(tmp_path), **settings)


@pytest.mark.parametrize("config", [EXPERTS, DEEPSEEK], ids=lambda config: config.model_type)
def test_merged_experts_are_refused_where_they_would_have_to_be_written(tmp_path, config) -> None:
    for settings, sampled in (({"method": "full"}, False), ({"quantization": "nf4", "adapter": OUTPUTS}, True)):
        with pytest.raises(UserError, match=f"The files of a {config.model_type} model .*policy.method=lora"):
            check_policy(policy(tmp_path, config, **settings), sampled=sampled)
    for settings in ({}, {"quantization": "nf4"}):
        [note] = check_policy(policy(tmp_path, config, adapter=OUTPUTS, **settings), sampled=False)
        assert note.startswith(f"note: The files of a {config.model_type}") and "without --merge" in note


def test_renamed_weights_are_no_obstacle(tmp_path) -> None:
    assert check_policy(policy(tmp_path, PYTHIA, method="full"), sampled=True) == []
    adapter = {"targets": ["query_key_value", "dense"]}
    assert check_policy(policy(tmp_path, PYTHIA, adapter=adapter), sampled=True) == []


@pytest.mark.parametrize("targets", [["q_proj"], ["c_attn"], ["c_attn", "c_proj"]])
def test_conv1d_layers_are_named_as_what_gets_no_adapter(tmp_path, targets) -> None:
    with pytest.raises(UserError, match=r"gpt2 model \(c_attn, c_fc, c_proj\) are Conv1D layers.* policy.method=full"):
        check_policy(policy(tmp_path, GPT2, adapter={"targets": targets}), sampled=True)
    assert check_policy(policy(tmp_path, GPT2, method="full"), sampled=True) == []


def test_targets_that_a_model_lacks_are_named_with_what_it_has(tmp_path) -> None:
    with pytest.raises(UserError, match=r"a gpt_neox model has no q_proj, .*; it has dense, dense_4h_to_h"):
        check_policy(policy(tmp_path, PYTHIA), sampled=True)


@pytest.fixture
def adapter(tmp_path):
    save(llama(), tmp_path / "model")

    def write(**changed):
        model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
        model.save_pretrained(str(tmp_path / "adapter"))
        config = tmp_path / "adapter/adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))
        return PolicySection(model=str(tmp_path / "model"), sft_adapter=str(tmp_path / "adapter"))

    return write


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lora_bias", True),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("init_lora_weights", "pissa"),
        ("layer_replication", [[0, 1], [0, 1]]),
    ],
)
def test_adapters_that_samplers_do_not_load_are_refused(adapter, name, value) -> None:
    with pytest.raises(UserError, match=f"uses {name}, which vLLM cannot sample from"):
        check_policy(adapter(**{name: value}), sampled=True)


def test_a_rank_of_one_layer_counts_as_the_adapter_s(adapter) -> None:
    with pytest.raises(UserError, match="uses a rank above 512, which vLLM cannot sample from"):
        check_policy(adapter(rank_pattern={"q_proj": 1024}), sampled=True)


@pytest.mark.parametrize("initialised", ["gaussian", "orthogonal", "eva"])
def test_how_an_adapter_was_initialised_does_not_matter_once_it_is_trained(adapter, tmp_path, initialised) -> None:
    settings = adapter(init_lora_weights=initialised)
    assert check_policy(settings, sampled=True) == []
    for trainable in (False, True):
        ours = load_adapter(llama(), tmp_path / "adapter", trainable=trainable)
        theirs = PeftModel.from_pretrained(llama(), str(tmp_path / "adapter"))
        assert torch.equal(*(group_logprobs(one, [3, 4], [[7, 8]]) for one in (ours.eval(), theirs.eval())))


@pytest.mark.parametrize("old", [True, False])
def test_an_adapter_without_safetensors_is_named(adapter, tmp_path, old) -> None:
    settings = adapter()
    weights = tmp_path / "adapter/adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin")) if old else weights.unlink()
    said = "only adapter_model.bin, which PEFT before 0.7 wrote" if old else "no weights"
    with pytest.raises(UserError, match=rf"has {said}, and no adapter_model.safetensors; write it with a newer PEFT"):
        check_policy(settings, sampled=True)
