"""`sequence_logprobs` on users' models, against the log-softmax of the untouched models' own logits."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.errors import UserError
from brain_align.common.nn.logprobs import sequence_logprobs
from brain_align.common.nn.models.adapters import attach_new_adapter
from tests.unit.common.nn.test_packed_models import PACKED, PADDED, SHAPE
from tests.unit.tiny_models import CONTEXT, gptj, llama

GROUPS = [([5, 17, 2, 60, 33], [[7, 8, 9, 95], [11], [], [7, 8]]), ([4], [[3], [5, 6]])]


def stock(kind, **settings):
    torch.manual_seed(0)
    own = PACKED[kind] if kind in PACKED else PADDED[kind]
    config = AutoConfig.for_model(kind, **{**SHAPE, **own, **settings})
    return AutoModelForCausalLM.from_config(config).eval()


def log_softmax(model, prompt, output):
    """Log q of each token of an output, from all logits of one text."""
    logits = model(input_ids=torch.tensor([[*prompt, *output]])).logits[0].log_softmax(-1)
    return logits[len(prompt) - 1 : -1].gather(1, torch.tensor(output, dtype=torch.int64)[:, None]).flatten()


@pytest.mark.parametrize("max_tokens", [None, 8])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gptj", "bloom", "mamba"])
def test_a_stock_model_s_own_log_softmax_is_returned_and_has_gradients(kind, max_tokens):
    model = stock(kind)
    plain = copy.deepcopy(model)
    computed = sequence_logprobs(model, GROUPS, max_tokens=max_tokens)
    assert [len(one.tokens) for one in computed] == [4, 2]
    expected = [[log_softmax(plain, prompt, output) for output in outputs] for prompt, outputs in GROUPS]
    for one, theirs in zip(computed, expected, strict=True):
        torch.testing.assert_close(one.sums, torch.stack([tokens.sum() for tokens in theirs]), atol=2e-5, rtol=1e-5)
        for ours, tokens in zip(one.tokens, theirs, strict=True):
            torch.testing.assert_close(ours, tokens, atol=2e-5, rtol=1e-5)
    torch.cat([one.sums for one in computed]).sum().backward()
    torch.cat([tokens for theirs in expected for tokens in theirs]).sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3, msg=name)


def test_an_adapter_takes_part_and_the_model_is_checked_once(monkeypatch):
    model = attach_new_adapter(llama(), AdapterSection(r=4, alpha=8, targets=["q_proj"]), seed=1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.fill_(0.1)
    first = sequence_logprobs(model, GROUPS)
    monkeypatch.setattr("brain_align.common.nn.logprobs.check_exact", lambda *_: pytest.fail("checked again"))
    again = sequence_logprobs(model, GROUPS)
    assert torch.equal(first[0].sums, again[0].sums)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(
        first[0].tokens[0], log_softmax(merged, GROUPS[0][0], GROUPS[0][1][0]), atol=1e-4, rtol=0
    )


def test_no_groups_have_no_log_probabilities():
    assert sequence_logprobs(llama(), []) == []


@pytest.mark.parametrize("max_tokens", [None, 4])
@pytest.mark.parametrize(
    ("group", "message"),
    [
        (([], [[1]]), "at least one token"),
        (([1], []), "at least one output"),
        (([1] * CONTEXT, [[1]]), "the model reads"),
    ],
)
def test_texts_that_cannot_be_computed_are_refused(group, message, max_tokens):
    with pytest.raises(ValueError, match=message):
        sequence_logprobs(llama(), [group], max_tokens=max_tokens)


@pytest.mark.parametrize("model", [lambda: stock("gpt2"), lambda: llama(attention_dropout=0.1)])
def test_active_dropout_is_refused(model):
    model = model()
    assert sequence_logprobs(model, GROUPS)
    with pytest.raises(ValueError, match=r"dropout is active .*model.eval\(\)"):
        sequence_logprobs(model.train(), GROUPS)


def test_a_model_that_transforms_its_logits_is_refused():
    with pytest.raises(UserError, match="transforms its logits"):
        sequence_logprobs(stock("gemma2", final_logit_softcapping=0.5), GROUPS)


def test_an_adapted_output_layer_is_refused():
    adapted = gptj()
    adapted.lm_head = torch.nn.Sequential(adapted.lm_head)
    with pytest.raises(UserError, match="not a plain linear layer"):
        sequence_logprobs(adapted, GROUPS)
