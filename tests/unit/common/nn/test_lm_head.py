import pytest
import torch
from torch import nn

from brain_align.common.nn.lm_head import LMHead
from tests.allocations import peak_bytes


def make(tokens, width, vocabulary, *, bias, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(width, vocabulary, bias=bias, dtype=dtype)
    hidden = torch.randn(tokens, width, generator=generator, dtype=dtype, requires_grad=True)
    predictor_of = torch.randint(tokens, (2 * tokens,), generator=generator)
    targets = torch.randint(vocabulary, (2 * tokens,), generator=generator)
    return layer, hidden, predictor_of, targets


def naive(layer, hidden, predictor_of, targets):
    """All logits at once."""
    return layer(hidden).log_softmax(-1)[predictor_of, targets]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("tokens", "width", "vocabulary"), [(5, 8, 7), (300, 16, 5000), (1, 4, 70_000), (600, 300, 999)]
)
def test_values_and_gradients_are_those_of_all_logits_at_once(tokens, width, vocabulary, bias):
    layer, hidden, predictor_of, targets = make(tokens, width, vocabulary, bias=bias)
    weights = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    inputs = [hidden, *layer.parameters()]
    expected = naive(layer, hidden, predictor_of, targets)
    actual = LMHead(layer)(hidden, predictor_of, targets)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad((weights * actual).sum(), inputs), torch.autograd.grad((weights * expected).sum(), inputs)
    )


def test_gradients_equal_finite_differences():
    layer, hidden, predictor_of, targets = make(3, 4, 11, bias=True)
    torch.autograd.gradcheck(
        lambda hidden, weight, bias: LMHead(_layer(weight, bias))(hidden, predictor_of, targets),
        (hidden, layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_()),
    )


def _layer(weight, bias):
    layer = nn.Linear(1, 1)
    del layer.weight, layer.bias
    layer.weight, layer.bias = weight, bias  # plain tensors, as gradcheck hands them over
    return layer


def test_a_frozen_layer_gets_no_gradient():
    layer, hidden, predictor_of, targets = make(3, 4, 11, bias=True)
    LMHead(layer.requires_grad_(False))(hidden, predictor_of, targets).sum().backward()
    assert hidden.grad is not None
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_sixteen_bit_models_are_summed_in_float32():
    layer, hidden, predictor_of, targets = make(40, 16, 3000, bias=True, dtype=torch.float32)
    exact = naive(layer, hidden, predictor_of, targets)
    rounded = LMHead(layer.bfloat16())(hidden.bfloat16(), predictor_of, targets)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.02


def test_nothing_to_predict_is_no_error():
    layer, hidden, *_ = make(3, 4, 11, bias=True)
    nothing = torch.empty(0, dtype=torch.int64)
    logprobs = LMHead(layer)(hidden[:0], nothing, nothing)
    assert logprobs.shape == (0,)
    logprobs.sum().backward()
    assert hidden.grad.abs().max() == 0


@pytest.mark.parametrize(("tokens", "width"), [(1024, 512), (256, 1024)])
def test_a_vocabulary_of_50400_takes_less_than_twice_the_hidden_states(tokens, width):
    layer, hidden, *_ = make(tokens, width, 50_400, bias=True, dtype=torch.float32)
    head, own = LMHead(layer.requires_grad_(False)), torch.arange(tokens)
    targets = torch.randint(50_400, (tokens,))

    def forward_and_backward():
        head(hidden, own, targets).sum().backward()

    assert peak_bytes(forward_and_backward) < 2 * hidden.nbytes
    assert peak_bytes(lambda: naive(layer, hidden, own, targets)) > 30 * hidden.nbytes  # what would be taken otherwise
