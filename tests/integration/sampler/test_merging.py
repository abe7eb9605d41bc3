"""An adapter added to the weights of the base model's files gives what PEFT's own merging gives."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from brain_align.common.nn.models.adapters import save_adapter
from brain_align.sampler.engine.adapter_support import supports_adapters
from brain_align.sampler.weights.merging import Rounding, merged
from tests.unit.tiny_models import llama

CPU = torch.device("cpu")
PATTERNS = {"use_rslora": True, "rank_pattern": {"down_proj": 3}, "alpha_pattern": {r".*\.0\..*q_proj": 64}}


def bloom() -> BloomForCausalLM:
    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2))


def gpt2() -> GPT2LMHeadModel:
    """Its layers, of which one is square, hold their weights transposed."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2))


def adapted(model, directory, std=0.3, **settings) -> PeftModel:
    """A model with an adapter that changes something, which lies in the directory, too."""
    policy = get_peft_model(model, LoraConfig(r=2, lora_alpha=8, **settings))
    for name, weight in policy.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=std)
    save_adapter(policy, directory)
    return policy


def files_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("model", "prefix", "settings"),
    [
        (llama, "", {"target_modules": ["q_proj", "down_proj"], **PATTERNS}),
        (gpt2, "transformer.", {"target_modules": ["c_attn", "c_proj"], "use_rslora": True, "fan_in_fan_out": True}),
        (bloom, "", {"target_modules": ["query_key_value"]}),
        (bloom, "transformer.", {"target_modules": ["query_key_value"]}),  # as the files on the hub call its weights
    ],
)
def test_merged_weights_are_those_of_peft(model, prefix, settings, tmp_path) -> None:
    base = model()
    files = {name.removeprefix(prefix): value for name, value in files_of(base).items()}
    policy = adapted(base, tmp_path, **settings)
    found = dict(merged(files.items(), tmp_path, torch.float32, CPU, lambda name: name, Rounding()))
    expected = {name.removeprefix(prefix): value for name, value in policy.merge_and_unload().state_dict().items()}
    assert found.keys() == files.keys()
    assert any(not torch.equal(found[name], files[name]) for name in files)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize(
    ("std", "dtype", "least", "most"),
    [(0.3, torch.float32, 1e-9, 1e-6), (0.3, torch.bfloat16, 1e-4, 1e-2), (1e-4, torch.bfloat16, 0.3, 1.5)],
)
def test_what_rounding_takes_from_an_adapter_is_measured(std, dtype, least, most, tmp_path) -> None:
    base = llama()
    files = files_of(base)
    adapted(base, tmp_path, std=std, target_modules=["q_proj", "down_proj"])
    rounding = Rounding()
    dict(merged(files.items(), tmp_path, dtype, CPU, lambda name: name, rounding))
    assert least < rounding.share < most


def test_weights_that_the_files_lack_are_refused(tmp_path) -> None:
    files = files_of(llama())
    adapted(llama(), tmp_path, target_modules=["q_proj"])
    del files["model.layers.1.self_attn.q_proj.weight"]
    with pytest.raises(ValueError, match=r"changes 1 weights .* model\.layers\.1\.self_attn\.q_proj\.weight"):
        dict(merged(files.items(), tmp_path, torch.float32, CPU, lambda name: name, Rounding()))


class Seen(Rounding):
    """Notes where sums were computed, without values: the device `meta` has none."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []

    def note(self, base: torch.Tensor, changed: torch.Tensor, change: torch.Tensor) -> None:
        self.devices += [tensor.device.type for tensor in (base, changed, change)]


def test_changed_weights_are_computed_on_the_model_s_device_one_at_a_time(tmp_path) -> None:
    files = files_of(llama())
    adapted(llama(), tmp_path, target_modules=["q_proj", "down_proj"])
    seen, changed = Seen(), 0
    for name, value in merged(files.items(), tmp_path, torch.bfloat16, torch.device("meta"), lambda name: name, seen):
        adapts = "q_proj" in name or "down_proj" in name
        changed += adapts
        assert value.device.type == ("meta" if adapts else "cpu")
        assert len(seen.devices) == 3 * changed, "no matrix is computed before it is asked for"
    assert changed == 4 and set(seen.devices) == {"meta"}


@pytest.mark.parametrize(("architecture", "has"), [("LlamaForCausalLM", True), ("GPTJForCausalLM", False)])
def test_vllm_says_which_models_it_has_adapters_for(architecture: str, has: bool) -> None:
    assert supports_adapters([architecture]) == has
