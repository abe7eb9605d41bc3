"""Packed rows on a CUDA device in bfloat16, against float32 on the CPU and a dense mask.

pytest tests/gpu
"""

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM

from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
from brain_align.common.nn.prefix.attention import prefix_attention
from brain_align.common.nn.prefix.packing import pack
from tests.unit.common.nn.test_prefix_attention import REQUESTS, dense

VOCABULARY = 512


def llama():
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def gptj():
    """One head as wide as GPT-J-6B's: 256, the most that the kernel takes."""
    config = GPTJConfig(
        vocab_size=VOCABULARY, n_embd=512, n_layer=2, n_head=2, rotary_dim=64, bos_token_id=1, eos_token_id=2
    )
    return GPTJForCausalLM(config).eval()


def requests():
    generator = torch.Generator().manual_seed(0)

    def tokens(count):
        return torch.randint(VOCABULARY, (count,), generator=generator).tolist()

    return [
        request_of(tokens(300), [tokens(length) for length in (1, 48, 17, 30)]),
        request_of(tokens(1), [tokens(5), tokens(2)]),
        request_of(tokens(64), [tokens(1)]),
    ]


@pytest.mark.parametrize("requests", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("width", [64, 256])
def test_the_kernels_result_and_gradients_are_those_of_a_dense_mask(requests, width):
    layout = pack(requests).layout
    torch.manual_seed(0)
    exact = [torch.randn(layout.tokens, 2, width, device="cuda").requires_grad_() for _ in range(3)]
    row = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    weights = torch.randn(layout.tokens, 2, width, device="cuda")
    actual = prefix_attention(row[0], row[1], row[2], layout, width**-0.5)
    expected = dense([tensor.cpu() for tensor in exact], layout, width**-0.5).cuda()
    torch.testing.assert_close(actual.float(), expected, atol=0.03, rtol=0.03)
    gradients = torch.autograd.grad((weights * actual).sum(), row)
    references = torch.autograd.grad((weights * expected).sum(), exact)
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient.float() - reference).norm() <= 0.02 * reference.norm() + 1e-6


@pytest.mark.parametrize("make", [llama, gptj])
def test_values_and_gradients_are_those_of_float32_on_the_cpu(make):
    torch.manual_seed(0)
    model = make()
    weights = torch.linspace(-1, 1, 7)

    def gradient(logprobs, weights):
        logprobs.model.zero_grad()
        (weights * logprobs(requests())).sum().backward()
        values = logprobs.model.parameters()
        return torch.cat([value.grad.float().cpu().flatten() for value in values if value.grad is not None])

    exact = SequenceLogprobs(model)
    expected, reference = exact(requests()).detach(), gradient(exact, weights)
    on_gpu = SequenceLogprobs(model.to("cuda", torch.bfloat16))
    assert on_gpu.decoder.padded_because is None
    lengths = torch.tensor([1, 48, 17, 30, 5, 2, 1])
    difference = (on_gpu(requests()).detach().cpu() - expected).abs() / lengths
    assert difference.max() < 0.02
    actual = gradient(on_gpu, weights.cuda())
    assert (actual - reference).norm() <= 0.05 * reference.norm()


@pytest.mark.parametrize("make", [llama, gptj])
def test_packed_and_padded_rows_agree(make):
    torch.manual_seed(0)
    logprobs = SequenceLogprobs(make().to("cuda", torch.bfloat16))
    check = logprobs.check_packed(requests()[0], 4096)
    assert check is not None
    assert check.passed, check


def test_float32_has_no_kernel_and_says_so():
    logprobs = SequenceLogprobs(llama().to("cuda"))
    assert logprobs.decoder.padded_because == "flash attention computes in bfloat16 or float16, not in float32"
    assert logprobs(requests()).isfinite().all()
