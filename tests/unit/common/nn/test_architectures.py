"""Every architecture: our log-probabilities are transformers' own, or the model is refused in one sentence."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from brain_align.common.config.inputs import AdapterSection, PolicySection
from brain_align.common.errors import UserError
from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
from brain_align.common.nn.models.exactness import decoder_of
from brain_align.common.nn.models.policy_model import load_policy_model, load_prior_model
from tests.unit.common.nn.architectures import VARIANTS, architecture, random_model

_TRANSFORMED = "transforms its logits"
_LENGTH = "does not state how many tokens"
REFUSED = {
    "cohere": _TRANSFORMED,  # logit_scale
    "cohere2": _TRANSFORMED,
    "gemma2": _TRANSFORMED,  # soft-capping
    "gemma3n_text": _TRANSFORMED,
    "granite with scaled logits": _TRANSFORMED,
    "inkling_text": _TRANSFORMED,
    "minicpm3": _TRANSFORMED,
    "modernbert-decoder": _TRANSFORMED,  # layers between decoder and output layer
    "nanochat": _TRANSFORMED,
    "prophetnet": _TRANSFORMED,
    "rembert": _TRANSFORMED,  # likewise
    "vaultgemma": _TRANSFORMED,
    "bert": _TRANSFORMED,
    "roberta": _TRANSFORMED,
    "bert-generation": "reads tokens that come later",  # an encoder, unless is_decoder is set
    "xlnet": _LENGTH,
    "falcon_mamba": _LENGTH,  # neither their configurations nor their weights tell
    "recurrent_gemma": _LENGTH,
}
"""Expected refusals, each with a part of its sentence."""


ARCHITECTURES = [
    *("afmoe", "apertus", "arcee", "aria_text", "axk1", "axk2", "bamba", "bart", "bert", "bert-generation"),
    *("bigbird_pegasus", "biogpt", "bitnet", "blenderbot", "bloom", "codegen", "cohere", "cohere2", "cohere2_moe"),
    *("ctrl", "cwm", "dbrx", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "diffllama", "doge"),
    *("dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "falcon_h1", "falcon_mamba"),
    *("flex_olmo", "fuyu", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text"),
    *("glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox"),
    *("gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe", "granitemoehybrid"),
    *("granitemoeshared", "helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hy_v4"),
    *("hyperclovax", "inkling_text", "jais2", "jamba", "jetmoe", "laguna", "lfm2", "lfm2_moe", "llama"),
    *("llama4_text", "longcat_flash", "mamba", "mamba2", "mellum", "mimo_v2_flash", "minicpm3", "minimax"),
    *("minimax_m2", "ministral", "ministral3", "mistral", "mixtral", "modernbert-decoder", "mpt", "nanochat"),
    *("nemotron", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt", "persimmon", "phi"),
    *("phi3", "phimoe", "prophetnet", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe"),
    *("qwen3_next", "recurrent_gemma", "rembert", "roberta", "rwkv", "seed_oss", "smollm3", "solar_open"),
    *("stablelm", "starcoder2", "vaultgemma", "xglm", "xlm", "xlnet", "youtu", "zamba2", "zaya", *VARIANTS),
]


def texts():
    """Groups with texts on both sides of the lengths at which models change, alone and as neighbours."""
    generator = torch.Generator().manual_seed(1)

    def ids(length):
        return torch.randint(3, 96, (length,), generator=generator).tolist()

    return [
        request_of(ids(11), [ids(5), ids(1), ids(14), []]),
        request_of(ids(30), [ids(25), ids(4), ids(40)]),
    ]


@torch.no_grad()
def one_by_one(model, requests, at_least):
    """log q(y|x) per token, from transformers' own logits of one text at a time."""
    values = []
    for prompt, outputs in requests:
        for output in outputs:
            text = torch.cat([prompt, output])
            # Later tokens change nothing, except which rotary frequencies a model takes.
            row = torch.cat([text, text.new_full((max(0, at_least - len(text)),), 5)])
            logprobs = model(input_ids=row[None]).logits[0].float().log_softmax(-1)
            places = torch.arange(len(output)) + len(prompt) - 1
            values.append(logprobs[places, output].sum() / max(1, len(output)))
    return torch.stack(values)


def per_token(logprobs, requests):
    lengths = torch.tensor([max(1, len(output)) for _, outputs in requests for output in outputs])
    return logprobs(requests) / lengths


def save(name, directory):
    """Write what `save_pretrained` writes of a model with random weights; that one imports deepspeed."""
    model = random_model(AutoModelForCausalLM, architecture(name))
    model.config.save_pretrained(directory)
    weights = revert_weight_conversion(model, model.state_dict())
    save_file(
        {name: value.clone() for name, value in weights.items()}, directory / "model.safetensors", {"format": "pt"}
    )


def trained_part(model):
    """A section that trains an adapter where the model has a layer for it, else all weights."""
    linear = [name for name, module in decoder_of(model).named_modules() if type(module) is nn.Linear]
    names = [last for name in linear if (last := name.rpartition(".")[2]) != "out_proj"]  # PEFT: not Mamba's
    return {"adapter": AdapterSection(r=2, alpha=4, targets=[names[0], names[-1]])} if names else {"method": "full"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probabilities_are_transformers_own(name, tmp_path):
    save(name, tmp_path)
    window = 71 if "LongRoPE" in name else 0
    section = {"model": str(tmp_path), "dtype": "float32"}
    try:
        prior = load_prior_model(PolicySection(**section), window=window)
        policy = load_policy_model(PolicySection(**section, **trained_part(prior)), seed=1, window=window)
    except UserError as refusal:
        assert REFUSED.get(name, "supported") in str(refusal)
        assert "\n" not in str(refusal)
        return
    assert name not in REFUSED
    requests = texts()
    expected = one_by_one(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), requests, window)
    of_prior, of_policy = SequenceLogprobs(prior), SequenceLogprobs(policy)
    of_prior.decoder.pad_unless_exact()
    if (check := of_policy.check_packed(requests[0], 1000)) is not None and not check.passed:
        of_policy.decoder.padded_because = check.because
    with torch.no_grad():
        alone = torch.cat([per_token(of_prior, [request]) for request in requests])
        torch.testing.assert_close(alone, expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(per_token(of_prior, requests), expected, atol=2e-5, rtol=0)
    values = per_token(of_policy, requests)
    torch.testing.assert_close(values.detach(), expected, atol=2e-5, rtol=0)
    values.sum().backward()
    gradients = [value.grad for value in of_policy.trainable().values() if value.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_enough_architectures_are_tried_and_supported():
    assert len(set(ARCHITECTURES)) == len(ARCHITECTURES) >= 120
    assert set(ARCHITECTURES) >= REFUSED.keys()
    assert len(ARCHITECTURES) - len(REFUSED) >= 100
