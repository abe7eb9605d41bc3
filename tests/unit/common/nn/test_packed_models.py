"""Packed rows through stock architectures, against the untouched models on one sequence at a time."""

import copy
import logging
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
from brain_align.common.nn.models.adapters import attach_new_adapter
from tests.unit.tiny_models import CONTEXT, VOCABULARY, gptj, llama

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SHAPE = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PACKED: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": CONTEXT},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": {},
    "opt": {"word_embed_proj_dim": 32},
    "gpt2": GPT2_SHAPE,
    "gptj": GPT2_SHAPE | {"rotary_dim": 4},
}
PADDED: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"alibi": True},
    "mamba": {},
    "gpt_oss": {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8},
}
REQUESTS = [
    request_of([5, 17, 2, 60, 33], [[7, 8, 9, 95], [11], [95], [70, 71, 72, 73, 74, 75, 76], [7, 8]]),
    request_of([4], [[3], [5, 6]]),
    request_of([9, 8, 7], [[1, 2, 3], [], [3, 2]]),
]


def build(kind, settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **({} if "n_embd" in settings else SHAPE) | settings)
    return AutoModelForCausalLM.from_config(config).eval()


def one_by_one(model, requests):
    """log q(y|x) from all logits of one sequence at a time."""
    sums = []
    for prompt, outputs in requests:
        for output in outputs:
            logprobs = model(torch.cat([prompt, output])[None]).logits[0].double().log_softmax(-1)
            places = torch.arange(len(output)) + len(prompt) - 1
            sums.append(logprobs[places, output].sum())
    return torch.stack(sums)


def gradient(model, logprobs):
    model.zero_grad()
    (torch.linspace(-1, 1, len(logprobs)) * logprobs).sum().backward()
    return torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])


def passes_check(logprobs, request):
    check = logprobs.check_packed(request, 1000)
    return check is not None and check.passed


@pytest.mark.parametrize("kind", PACKED)
def test_packed_rows_give_the_stock_model_s_values_and_gradients(kind):
    model = build(kind, PACKED[kind])
    stock, logprobs = copy.deepcopy(model), SequenceLogprobs(model)
    assert logprobs.decoder.padded_because is None
    actual, expected = logprobs(REQUESTS), one_by_one(stock, REQUESTS)
    torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-6)
    ours, theirs = gradient(model, actual), gradient(stock, expected)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert passes_check(logprobs, REQUESTS[0])


@pytest.mark.parametrize("kind", PADDED)
def test_what_cannot_read_packed_rows_is_padded_with_one_warning(kind, caplog):
    model = build(kind, PADDED[kind])
    with caplog.at_level(logging.WARNING, logger="brain_align.common.nn.prefix.decoder"):
        logprobs = SequenceLogprobs(model)
        actual = logprobs(REQUESTS)
    assert [record.message for record in caplog.records if record.name == "brain_align.common.nn.prefix.decoder"] == [
        f"A {kind} model is computed on padded rows, which repeat each prompt for every output: "
        f"{logprobs.decoder.padded_because}."
    ]
    if kind != "gemma2":  # whose logits brain_align.common.nn.models.causal_lm refuses
        torch.testing.assert_close(actual.double(), one_by_one(model, REQUESTS), atol=1e-4, rtol=1e-5)


def test_beyond_a_sliding_window_rows_are_padded():
    model = build("mistral", {"num_key_value_heads": 2, "sliding_window": 6})
    stock, logprobs = copy.deepcopy(model), SequenceLogprobs(model)
    assert logprobs.check_packed(REQUESTS[0], 1000) is None
    assert passes_check(logprobs, REQUESTS[1])
    for request in REQUESTS:
        torch.testing.assert_close(logprobs([request]).double(), one_by_one(stock, [request]), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("make", [llama, gptj])
def test_packing_and_order_change_nothing(make):
    """Groups alone or together, outputs in any order, a group in parts: the same values and gradients."""
    model = make()
    logprobs = SequenceLogprobs(model)
    together = logprobs(REQUESTS)
    expected = gradient(model, together)
    prompt, outputs = REQUESTS[0]
    variants = {
        "one group a row": torch.cat([logprobs([request]) for request in REQUESTS]),
        "outputs reversed": torch.cat([logprobs([(prompt, outputs[::-1])]).flip(0), logprobs(REQUESTS[1:])]),
        "a group in parts": torch.cat(
            [logprobs([(prompt, outputs[:2])]), logprobs([(prompt, outputs[2:])]), logprobs(REQUESTS[1:])]
        ),
        "groups reversed": torch.cat(list(logprobs(REQUESTS[::-1]).split([3, 2, 5]))[::-1]),
    }
    for name, values in variants.items():
        torch.testing.assert_close(values, together, atol=1e-5, rtol=0, msg=name)
        assert (gradient(model, values) - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.parametrize("make", [llama, gptj])
def test_activation_checkpointing_sees_the_layout_again(make):
    model = make()
    model.requires_grad_(False)
    policy = attach_new_adapter(model, AdapterSection(r=2, alpha=4, targets=["q_proj"]), seed=0)
    logprobs = SequenceLogprobs(policy)
    expected = gradient(policy, logprobs(REQUESTS))
    policy.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.train()
    values = logprobs(REQUESTS)
    logprobs([REQUESTS[1]])  # another row in between must not be taken for the one that is computed again
    actual = gradient(policy, values)
    assert expected.abs().max() > 0
    torch.testing.assert_close(actual, expected)


def test_a_model_that_answers_differently_on_packed_rows_is_found_out():
    model = llama()
    logprobs = SequenceLogprobs(model)
    rotary = model.model.rotary_emb
    stock = rotary.forward
    rotary.forward = lambda hidden, position_ids: stock(hidden, torch.arange(position_ids.shape[1])[None])
    check = logprobs.check_packed(REQUESTS[0], 1000)
    assert check is not None
    assert not check.passed
    assert check.difference > 100 * check.tolerance
