"""Values of texts on packed rows, against the stock model on one text at a time."""

import copy
import itertools
import random

import pytest
import torch
from transformers import GPTJModel, LlamaModel, MistralConfig, MistralModel

from brain_align.scorer.text_models.text_values import SharedPrefix, TextValues, shared_prefixes
from tests.unit.tiny_models import CONTEXT, VOCABULARY, gptj_config, llama


def cost(texts, parts):
    return sum(part.length + sum(len(texts[index]) - part.length for index in part.texts) for part in parts)


@pytest.mark.parametrize(
    ("texts", "parts"),
    [
        ([[1, 2, 3], [1, 2], [1, 2, 4]], [(2, {0, 1, 2})]),
        ([[1, 2], [1, 2]], [(2, {0, 1})]),
        ([[7]], [(1, {0})]),
        ([[1, 2], [3, 4]], [(2, {0}), (2, {1})]),
        # Two windows of one long text: a first token that happens to be the same is not worth sharing.
        ([[1, 2, 3, 4], [1, 5, 6, 7], [1, 2, 3, 5], [1, 5, 6, 8]], [(3, {0, 2}), (3, {1, 3})]),
    ],
)
def test_texts_that_begin_alike_share_their_beginning(texts, parts):
    assert [(part.length, set(part.texts)) for part in shared_prefixes(texts)] == parts


def test_no_cut_of_the_sorted_texts_costs_less():
    generator = random.Random(0)
    for _ in range(60):
        texts = [[generator.choice([1, 1, 1, 2]) for _ in range(generator.randint(1, 6))] for _ in range(5)]
        found = shared_prefixes(texts)
        assert sorted(index for part in found for index in part.texts) == list(range(5))
        for part in found:
            assert len({tuple(texts[index][: part.length]) for index in part.texts}) == 1
        assert cost(texts, found) == min(cost(texts, parts) for parts in all_cuts(texts))


def all_cuts(texts):
    """Every way to cut five sorted texts into runs, each with its longest common beginning."""
    order = sorted(range(5), key=lambda index: texts[index])
    for cuts in itertools.product([False, True], repeat=4):
        edges = [0, *(place + 1 for place in range(4) if cuts[place]), 5]
        runs = [order[start:end] for start, end in itertools.pairwise(edges)]
        parts = [SharedPrefix(common([texts[index] for index in run]), tuple(run)) for run in runs]
        if all(part.length for part in parts):
            yield parts


def common(rows):
    return sum(itertools.takewhile(bool, (int(len(set(column)) == 1) for column in zip(*rows, strict=False))))


# -- values

SHARED = list(range(1, 31))
TEXTS = [
    [*SHARED, 40, 41, 42],
    [*SHARED, 40],
    SHARED,
    [*SHARED, 40],
    [50, 51, 52],
    [50, 51, 53, 54],
    [60],
    list(range(2, 2 + CONTEXT)),
]


def gptj_decoder():
    torch.manual_seed(0)
    return GPTJModel(gptj_config()).eval()


def mistral_with_a_window():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, sliding_window=8, max_position_embeddings=CONTEXT, **shape
    )
    return MistralModel(config).eval()


def llama_decoder() -> LlamaModel:
    return llama().model


DECODERS = {"gptj": gptj_decoder, "llama": llama_decoder, "mistral, beyond its window": mistral_with_a_window}


def head(bias=False):
    torch.manual_seed(1)
    return torch.nn.Linear(32, 1, bias=bias).requires_grad_(False)


def one_by_one(model, head, texts):
    with torch.no_grad():
        return [head(model(torch.tensor([text])).last_hidden_state[0, -1]).item() for text in texts]


@pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_values_are_those_of_each_text_alone(make, max_tokens):
    model = make()
    expected = one_by_one(copy.deepcopy(model), head(bias=True), TEXTS)
    values = TextValues(model, head(bias=True), max_tokens)
    assert values.of(TEXTS) == pytest.approx(expected, abs=2e-5)
    assert max(expected) - min(expected) > 0.5
    assert values.of([]) == []


def test_a_beginning_is_computed_once(monkeypatch):
    model = gptj_decoder()
    values = TextValues(model, head(), 10_000)
    computed = []
    stock = model.forward

    def recorded(**inputs):
        computed.append(inputs["input_ids"].tolist())
        return stock(**inputs)

    monkeypatch.setattr(model, "forward", recorded)
    values.of([[*SHARED, 40, 41], [*SHARED, 42], SHARED])
    assert computed == [[[*SHARED, 40, 41, 42]]]


def test_a_model_that_answers_differently_on_packed_rows_is_found_out_and_padded(caplog):
    model = llama_decoder()
    rotary = model.rotary_emb
    stock = rotary.forward
    rotary.forward = lambda hidden, position_ids: stock(hidden, torch.arange(position_ids.shape[1])[None])
    expected = one_by_one(copy.deepcopy(model), head(), TEXTS)
    values = TextValues(model, head(), 10_000)
    assert "packed rows give other hidden states" in caplog.text
    assert values.of(TEXTS) == pytest.approx(expected, abs=2e-5)
