import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from brain_align.common.config.inputs import AdapterSection, PolicySection
from brain_align.common.errors import UserError
from brain_align.common.nn.models.adapters import attach_new_adapter, load_adapter, save_adapter
from brain_align.common.nn.models.causal_lm import load_causal_lm
from brain_align.common.nn.models.policy_model import adapter_rank, load_policy_model, load_prior_model
from brain_align.common.nn.models.saving import load_dequantized, save_causal_lm
from brain_align.common.nn.models.shards import write_shards
from tests.unit.common.nn.logprob_calls import group_logprobs
from tests.unit.tiny_models import gptj, llama, save

OUTPUTS = [[7, 8, 9], [10]]
SFT = AdapterSection(r=4, alpha=8, targets=["q_proj", "down_proj"])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    save(llama(), directory)
    return str(directory)


@pytest.fixture(scope="module")
def sft_adapter(tmp_path_factory):
    """One that moves the log-probabilities by more than rounding does."""
    directory = tmp_path_factory.mktemp("sft")
    model = attach_new_adapter(llama(), SFT, seed=5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    save_adapter(model, directory)
    return str(directory)


def policy(model, **settings):
    return PolicySection(model=model, **({"dtype": "float32"} | settings))


def logprobs(model):
    return group_logprobs(model, [3, 4], OUTPUTS).detach()


def trainable(model):
    return [name for name, value in model.named_parameters() if value.requires_grad]


KINDS = [
    {},
    {"adapter": {"r": 2, "alpha": 4, "targets": ["q_proj"]}},
    {"method": "full"},
    {"quantization": "nf4"},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "method": "full"},
    {"dtype": "bfloat16", "quantization": "nf4"},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: " ".join(map(str, kind.values())) or "lora")
def test_the_policy_is_the_prior_at_first_and_the_gradient_is_where_it_should_be(base, kind):
    settings = policy(base, **kind)
    prior, start = load_prior_model(settings), load_policy_model(settings, seed=1)
    with torch.no_grad():
        without_gradient = logprobs(start)
    assert torch.equal(logprobs(prior), without_gradient)
    assert torch.equal(logprobs(prior), logprobs(start))
    assert not trainable(prior)
    group_logprobs(start, [3, 4], OUTPUTS).sum().backward()
    names = trainable(start)
    assert {name for name, value in start.named_parameters() if value.grad is not None} == set(names)
    if settings.method == "full":
        assert len(names) == len(list(start.parameters()))
    else:
        assert names
        assert all(".lora_" in name for name in names)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_with_an_sft_adapter_the_prior_has_it_and_the_policy_starts_as_its_copy(base, sft_adapter, quantization):
    settings = policy(base, sft_adapter=sft_adapter, quantization=quantization)
    prior, start = load_prior_model(settings), load_policy_model(settings, seed=1)
    assert torch.equal(logprobs(prior), logprobs(start))
    assert not trainable(prior)
    assert (logprobs(prior) - logprobs(load_causal_lm(base, "float32", "cpu", quantization))).abs().max() > 0.1
    assert len(trainable(start)) == 2 * 2 * 2  # A and B, layers, targets
    assert adapter_rank(settings) == 4


def test_training_the_policy_leaves_the_sft_adapter_of_the_prior_alone(base, sft_adapter, tmp_path):
    settings = policy(base, sft_adapter=sft_adapter)
    start = load_policy_model(settings, seed=1)
    with torch.no_grad():
        for name in trainable(start):
            start.get_parameter(name).add_(0.01)
    save_adapter(start, tmp_path)
    published = load_adapter(load_causal_lm(base, "float32"), tmp_path)
    assert torch.equal(logprobs(published), logprobs(start))
    assert not torch.equal(logprobs(load_prior_model(settings)), logprobs(start))


def test_a_recipe_that_contradicts_the_sft_adapter_is_refused(base, sft_adapter):
    same = policy(base, sft_adapter=sft_adapter, adapter=SFT.model_dump())
    assert adapter_rank(same) == 4
    other = policy(base, sft_adapter=sft_adapter, adapter={"r": 8, "alpha": 8, "targets": SFT.targets})
    for use in (adapter_rank, lambda settings: load_policy_model(settings, seed=1)):
        with pytest.raises(UserError, match=r"\(r 4 there, 8 here\); remove policy.adapter"):
            use(other)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_adapters_that_vllm_cannot_sample_from_are_refused(base, tmp_path, config, named):
    model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], **config))
    model.peft_config["default"].save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"uses {named}, which vLLM cannot sample from"):
        adapter_rank(policy(base, sft_adapter=str(tmp_path)))


def test_an_sft_adapter_that_is_not_there_is_named(base, tmp_path):
    with pytest.raises(UserError, match="The adapter: the directory /nowhere/adapter does not exist"):
        adapter_rank(policy(base, sft_adapter="/nowhere/adapter"))
    with pytest.raises(UserError, match=f"The adapter in {tmp_path} could not be loaded"):
        adapter_rank(policy(base, sft_adapter=str(tmp_path)))


def test_a_model_that_is_quantised_already_is_refused(tmp_path):
    model = llama()
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    save(model, tmp_path)
    with pytest.raises(UserError, match="is quantised already"):
        load_causal_lm(str(tmp_path), "float32")


# -- whole models


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_is_what_transformers_loads(tmp_path, tied):
    save(llama(attention_dropout=0.5, tie_word_embeddings=tied), tmp_path / "source")
    model = load_policy_model(policy(str(tmp_path / "source"), method="full"), seed=1)
    with torch.no_grad():
        model.get_parameter("model.norm.weight").mul_(1.5)
    (tmp_path / "saved").mkdir()
    save_causal_lm(model, tmp_path / "saved", model.named_parameters())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logprobs(loaded.eval()), logprobs(model))
    assert loaded.config.attention_dropout == 0.5
    assert loaded.config.use_cache


def test_transformers_loads_several_files(base, tmp_path):
    model = load_causal_lm(base, "float32")
    model.config.save_pretrained(tmp_path)
    write_shards(model.named_parameters(), tmp_path, "model", max_bytes=30_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(logprobs(load_causal_lm(str(tmp_path), "float32")), logprobs(model))


def test_a_bfloat16_model_stays_one(base, tmp_path):
    model = load_causal_lm(base, "bfloat16")
    save_causal_lm(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(logprobs(loaded), logprobs(model))


@pytest.mark.parametrize("make", [llama, gptj])
def test_a_dequantised_model_gives_the_quantised_ones_log_probabilities(tmp_path, make):
    save(make(), tmp_path / "source")
    (tmp_path / "saved").mkdir()
    save_causal_lm(load_dequantized(str(tmp_path / "source"), "float32"), tmp_path / "saved")
    assert {value.dtype for value in load_file(tmp_path / "saved/model.safetensors").values()} == {torch.float32}
    quantised = load_causal_lm(str(tmp_path / "source"), "float32", "cpu", "nf4")
    dequantised = load_causal_lm(str(tmp_path / "saved"), "float32")
    torch.testing.assert_close(logprobs(dequantised), logprobs(quantised), rtol=0, atol=1e-4)
    assert (logprobs(quantised) - logprobs(make())).abs().max() > 0.01


def test_models_whose_files_hold_other_tensors_are_refused_for_full_weights(tmp_path):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = MixtralConfig(vocab_size=50, num_key_value_heads=2, num_local_experts=2, **shape)
    save(MixtralForCausalLM(experts), tmp_path)
    with pytest.raises(UserError, match="files of a mixtral model"):
        load_policy_model(policy(str(tmp_path), method="full"), seed=1)
