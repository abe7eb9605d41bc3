import pytest
import torch

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
from brain_align.common.nn.models.adapters import attach_new_adapter
from tests.unit.common.nn.logprob_calls import group_logprobs, token_logprobs
from tests.unit.tiny_models import CONTEXT, EOS_ID, VOCABULARY, gptj, llama

MODELS = {"llama": llama, "tied llama": lambda: llama(tie_word_embeddings=True), "gptj": gptj}

PROMPT = [5, 17, 2, 60, 33]
OUTPUTS = [[7, 8, 9, EOS_ID], [11], [EOS_ID], [70, 71, 72, 73, 74, 75, 76], [], [7, 8]]


def naive_logprob(model, prompt, output):
    """One sequence at a time, all logits, textbook formula."""
    logits = model(torch.tensor([[*prompt, *output]])).logits[0].double()  # [t, v]
    logprobs = logits.log_softmax(-1)
    terms = [logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(output)]
    return torch.stack(terms).sum() if terms else logits.sum() * 0


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_sums_equal_the_naive_computation_on_single_sequences(model):
    with torch.no_grad():
        expected = torch.stack([naive_logprob(model, PROMPT, output) for output in OUTPUTS])
        actual = group_logprobs(model, PROMPT, OUTPUTS)
    assert actual.dtype == torch.float32
    assert expected.min() < -20  # or there would be little to compare
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-6)


def test_gradients_equal_those_of_the_naive_computation(model):
    weights = torch.linspace(-1, 1, len(OUTPUTS))
    gradients = []
    for logprobs in (
        torch.stack([naive_logprob(model, PROMPT, output) for output in OUTPUTS]),
        group_logprobs(model, PROMPT, OUTPUTS),
    ):
        model.zero_grad()
        (weights * logprobs).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    expected, actual = gradients
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


def test_an_output_is_not_changed_by_its_neighbours_and_their_padding(model):
    with torch.no_grad():
        together = group_logprobs(model, PROMPT, OUTPUTS)
        alone = torch.cat([group_logprobs(model, PROMPT, [output]) for output in OUTPUTS])
        shuffled = group_logprobs(model, PROMPT, OUTPUTS[::-1]).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, shuffled, atol=1e-5, rtol=0)


def test_the_log_probabilities_of_all_continuations_sum_to_one(model):
    with torch.no_grad():
        logprobs = group_logprobs(model, PROMPT, [[token] for token in range(VOCABULARY)])
    assert logprobs.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_tokens_are_those_that_the_sums_are_made_of(model):
    with torch.no_grad():
        tokens = token_logprobs(model, PROMPT, OUTPUTS)
        sums = group_logprobs(model, PROMPT, OUTPUTS)
    assert [len(part) for part in tokens] == [len(output) for output in OUTPUTS]
    assert torch.equal(torch.stack([part.sum() for part in tokens]), sums)


@pytest.mark.parametrize("output", [[], [3]])
def test_one_output_of_a_one_token_prompt(model, output):
    actual = group_logprobs(model, [4], [output])
    torch.testing.assert_close(actual[0].double(), naive_logprob(model, [4], output), atol=1e-5, rtol=0)
    actual.sum().backward()  # an empty output has a gradient too: zero


def test_parts_give_the_same_values_as_the_whole(model):
    whole = group_logprobs(model, PROMPT, OUTPUTS)
    parts = SequenceLogprobs(model).in_parts(request_of(PROMPT, OUTPUTS), max_tokens=12)
    assert not parts.requires_grad
    torch.testing.assert_close(parts, whole.detach(), atol=1e-5, rtol=0)


def test_a_policy_with_a_new_adapter_is_the_prior_and_one_with_a_trained_adapter_is_not():
    for make, target in ((llama, "q_proj"), (gptj, "fc_in")):
        prior = group_logprobs(make(), PROMPT, OUTPUTS)
        policy = attach_new_adapter(make(), AdapterSection(r=4, alpha=8, targets=[target]), seed=1)
        torch.testing.assert_close(group_logprobs(policy, PROMPT, OUTPUTS), prior, atol=0, rtol=0)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1)
        changed = group_logprobs(policy, PROMPT, OUTPUTS)
        assert (changed - prior).abs().max() > 0.1
        merged = policy.merge_and_unload()
        expected = torch.stack([naive_logprob(merged, PROMPT, output) for output in OUTPUTS])
        torch.testing.assert_close(changed.double(), expected, atol=1e-4, rtol=0)


def test_bfloat16_models_give_float32_sums_near_the_float32_ones(model):
    exact = group_logprobs(model, PROMPT, OUTPUTS)
    rounded = group_logprobs(model.to(torch.bfloat16), PROMPT, OUTPUTS)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("prompt", "outputs", "message"),
    [
        ([], [[1]], "at least one token"),
        ([1], [], "at least one output"),
        ([1] * CONTEXT, [[], [1]], f"have {CONTEXT + 1} tokens, the model reads {CONTEXT}"),
    ],
)
def test_what_cannot_be_computed_is_refused(prompt, outputs, message):
    with pytest.raises(ValueError, match=message):
        group_logprobs(llama(), prompt, outputs)
