import pytest

from brain_align.sampler.engine.data import Completion
from brain_align.sampler.generation import cut_at_stop
from tests.unit.tiny_models import gpt2_like_tokenizer

TOKENS = ["ab", "c", "\n", "d", "e\nf", "<end>"]


def decode(ids: list[int]) -> str:
    return "".join(TOKENS[token] for token in ids)


def completion(*ids: int) -> Completion:
    return Completion(list(ids), [-float(place) for place in range(len(ids))], "length")


@pytest.mark.parametrize(
    ("ids", "stop", "kept"),
    [
        ((0, 1, 2, 3, 2), ["\n"], 3),
        ((0, 1, 3, 1), ["cd"], 3),  # completed by a later token than it began with
        ((3, 4, 0, 1), ["\n"], 2),  # a token is never split
        ((0, 1, 0, 1), ["x", "c"], 2),
        ((2,), ["\n"], 1),
        ((0, 5, 1, 5), ["<end>"], 2),  # a special token
    ],
)
def test_an_output_ends_with_the_token_that_completes_a_stop_string(ids, stop, kept) -> None:
    cut = cut_at_stop(completion(*ids), stop, decode)
    assert (cut.token_ids, cut.finish_reason) == (list(ids[:kept]), "stop")
    assert cut.token_logprobs == [-float(place) for place in range(kept)]


def test_an_output_without_a_stop_string_stays_as_it_is() -> None:
    whole = completion(0, 3, 5)
    assert cut_at_stop(whole, ["\n"], decode) == whole
    assert cut_at_stop(completion(0, 2), [], decode) == completion(0, 2)


def test_a_stop_string_of_several_bytes_ends_where_its_last_byte_is() -> None:
    tokenizer = gpt2_like_tokenizer()
    ids = tokenizer.encode("the caf€ sat", add_special_tokens=False)
    cut = cut_at_stop(completion(*ids), ["€"], tokenizer.decode)
    assert tokenizer.decode(cut.token_ids) == "the caf€"
    assert tokenizer.decode(ids[: len(cut.token_ids) - 1]) != "the caf€"
