import pytest

from sampler.engine_data import Completion
from sampler.stopping import cut_at_stop
from tests.unit.tiny_models import gpt2_like_tokenizer

TOKENS = ["ab", "c", "\n", "d", "e\nf", "<end>"]


def decode(ids: list[int]) -> str:
    return "".join(TOKENS[token] for token in ids).removesuffix("<end>")


def completion(*ids: int) -> Completion:
    return Completion(list(ids), [-float(place) for place in range(len(ids))], "length")


@pytest.mark.parametrize(
    ("ids", "stop", "kept", "text"),
    [
        ((0, 1, 2, 3, 2), ["\n"], 3, "abc\n"),
        ((0, 1, 3, 1), ["cd"], 3, "abcd"),  # completed by a later token than it began with
        ((3, 4, 0, 1), ["\n"], 2, "de\nf"),  # a token is never split
        ((0, 1, 0, 1), ["x", "c"], 2, "abc"),
        ((2,), ["\n"], 1, "\n"),
    ],
)
def test_an_output_ends_with_the_token_that_completes_a_stop_string(ids, stop, kept, text) -> None:
    cut, found = cut_at_stop(completion(*ids), stop, decode)
    assert (cut.token_ids, found, cut.finish_reason) == (list(ids[:kept]), text, "stop")
    assert cut.token_logprobs == [-float(place) for place in range(kept)]


def test_an_output_without_a_stop_string_stays_as_it_is() -> None:
    whole = completion(0, 3, 5)
    assert cut_at_stop(whole, ["\n"], decode) == (whole, "abd")
    assert cut_at_stop(completion(0, 2), [], decode) == (completion(0, 2), "ab\n")


def test_a_stop_string_of_several_bytes_ends_where_its_last_byte_is() -> None:
    tokenizer = gpt2_like_tokenizer()
    ids = tokenizer.encode("the caf€ sat", add_special_tokens=False)
    cut, text = cut_at_stop(completion(*ids), ["€"], tokenizer.decode)
    assert text == "the caf€"
    assert tokenizer.decode(ids[: len(cut.token_ids) - 1]) != "the caf€"
