import pytest
import torch

from brain_align.common.nn.logprobs import request_of
from brain_align.common.nn.prefix.attention import prefix_attention
from brain_align.common.nn.prefix.packing import Layout, TokenBudget, pack


def request(prompt_length, *output_lengths):
    """Token ids do not matter to the attention."""
    return torch.zeros(prompt_length, dtype=torch.int64), [torch.zeros(n, dtype=torch.int64) for n in output_lengths]


REQUESTS = {
    "one group": [request(5, 4, 1, 7)],
    "several groups": [request(3, 2, 2), request(1, 5), request(6, 3, 9, 4)],
    "a prompt of one token": [request(1, 3, 3)],
    "outputs of no token": [request(4, 0, 0), request(2, 0, 3)],
    "no output token in the row": [request(4, 0), request(2)],
}


def attend(row, layout, scale):
    query, key, value = row
    return prefix_attention(query, key, value, layout, scale)


def dense(row, layout, scale):
    """The textbook form: all scores, and a mask that says who sees whom."""
    query, key, value = row
    mask = torch.zeros(layout.tokens, layout.tokens, dtype=torch.bool)
    for group in layout.groups:
        start = group.outputs_slice.start
        mask[group.prompt_slice, group.prompt_slice] = True
        for length in group.outputs:
            own = slice(start, start + length)
            mask[own, group.prompt_slice] = mask[own, own] = True
            start += length
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    scores = scores.masked_fill(~mask.tril(), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


def random_row(layout, dtype=torch.float64, heads=3, width=8):
    generator = torch.Generator().manual_seed(0)
    shape = (layout.tokens, heads, width)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("requests", REQUESTS.values(), ids=REQUESTS)
def test_result_and_gradients_are_those_of_a_dense_mask(requests):
    layout = pack(requests).layout
    row = random_row(layout)
    weights = torch.randn(row[0].shape, dtype=torch.float64)
    actual, expected = attend(row, layout, 0.3), dense(row, layout, 0.3)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad((weights * actual).sum(), row), torch.autograd.grad((weights * expected).sum(), row)
    )


def test_gradients_equal_finite_differences():
    layout = pack([request(3, 3, 1, 4), request(1, 2)]).layout
    row = random_row(layout, heads=1, width=2)
    torch.autograd.gradcheck(lambda *row: attend(row, layout, 0.5), row)


def test_large_scores_neither_overflow_nor_vanish():
    layout = pack([request(4, 3, 5)]).layout
    row = [100 * tensor for tensor in random_row(layout)]
    torch.testing.assert_close(attend(row, layout, 1.0), dense(row, layout, 1.0))


def test_sixteen_bits_are_merged_in_float32():
    layout = pack([request(40, 20, 30)]).layout
    row = random_row(layout, torch.bfloat16)
    actual = attend(row, layout, 0.3)
    assert actual.dtype == torch.bfloat16
    expected = dense([tensor.double() for tensor in row], layout, 0.3)
    assert (actual.double() - expected).abs().max() < 0.01


@pytest.mark.parametrize("requests", REQUESTS.values(), ids=REQUESTS)
def test_a_layout_survives_its_journey_through_a_model(requests):
    layout = pack(requests).layout
    assert Layout.decode(layout.encode()) == layout
    assert layout.encode().shape[:3] == (1, 1, 1)  # four dimensions: transformers hands such a mask on as it is


def test_a_row_holds_each_prompt_once_and_says_where_every_text_is():
    row = pack([request_of([7, 8], [[1, 2, 3], [], [4]]), request_of([9], [[5]])])
    assert row.token_ids.tolist() == [[7, 8, 1, 2, 3, 4, 9, 5]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1]]
    assert [places.tolist() for places in row.places] == [[0, 1, 2, 3, 4], [0, 1], [0, 1, 5], [6, 7]]


@pytest.mark.parametrize(
    ("max_tokens", "lengths", "expected"),
    [
        (100, [5, 5, 5], [(0, 3)]),
        (30, [5, 5, 5], [(0, 2), (2, 3)]),
        (1, [5, 0, 5], [(0, 1), (1, 2), (2, 3)]),
        (32, [1, 6, 1, 1], [(0, 2), (2, 4)]),  # padding to the longest counts: 2 * (10 + 6) = 32
        (31, [1, 6, 1, 1], [(0, 1), (1, 2), (2, 4)]),
        (10, [], []),
    ],
)
def test_padded_parts_cover_all_outputs_within_the_budget(max_tokens, lengths, expected):
    parts = list(TokenBudget(max_tokens, packed=False).parts(10, lengths))
    assert [(part.start, part.stop) for part in parts] == expected


@pytest.mark.parametrize(
    ("max_tokens", "lengths", "expected"),
    [
        (22, [5, 5, 5], [(0, 3)]),  # 10 + 3 * 4: an output's last token is not in the row
        (21, [5, 5, 5], [(0, 2), (2, 3)]),
        (1, [5, 0, 5], [(0, 1), (1, 2), (2, 3)]),
        (10, [1, 1, 0, 1], [(0, 4)]),
    ],
)
def test_packed_parts_pay_for_the_prompt_once(max_tokens, lengths, expected):
    parts = list(TokenBudget(max_tokens, packed=True).parts(10, lengths))
    assert [(part.start, part.stop) for part in parts] == expected
