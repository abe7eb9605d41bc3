import torch

from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.learner.publishing.publisher import make_probe
from tests.unit.tiny_models import VOCABULARY, llama


def test_a_probe_has_the_policy_s_log_probability_of_each_token():
    model = llama()
    probe = make_probe(SequenceLogprobs(model), model.config)
    ids = torch.tensor([probe.prompt + probe.continuation])
    with torch.no_grad():
        exact = model(ids).logits.log_softmax(-1)[0, len(probe.prompt) - 1 : -1]
    exact = exact.gather(-1, torch.tensor(probe.continuation)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(probe.logprobs), exact, atol=1e-4)
    assert len(set(probe.prompt + probe.continuation)) == 16
    assert all(0 <= token < VOCABULARY for token in probe.prompt + probe.continuation)


def test_another_policy_has_the_same_text_and_other_log_probabilities():
    first, second = (make_probe(SequenceLogprobs(model), model.config) for model in (llama(0), llama(1)))
    assert (first.prompt, first.continuation) == (second.prompt, second.continuation)
    assert max(abs(a - b) for a, b in zip(first.logprobs, second.logprobs, strict=True)) > 0.1
