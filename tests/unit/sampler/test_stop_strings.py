from collections.abc import Sequence

import pytest

from brain_align.common.config.sampling import SamplingSection
from brain_align.sampler.engine.data import Completion
from brain_align.sampler.generation import Generation, _outputs, cut_at_stop
from tests.unit.common.nn.test_continuation_text import PROMPT, byte_pieces, ids_of, llama
from tests.unit.tiny_models import gpt2_like_tokenizer

TOKENS = ["ab", "c", "\n", "d", "e\nf", "<end>"]


def decode(ids: Sequence[int]) -> str:
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
    cut = cut_at_stop(completion(*ids), stop, [decode])
    assert (cut.token_ids, cut.finish_reason) == (list(ids[:kept]), "stop")
    assert cut.token_logprobs == [-float(place) for place in range(kept)]


def test_an_output_without_a_stop_string_stays_as_it_is() -> None:
    whole = completion(0, 3, 5)
    assert cut_at_stop(whole, ["\n"], [decode]) == whole
    assert cut_at_stop(completion(0, 2), [], [decode]) == completion(0, 2)


def test_a_stop_string_of_several_bytes_ends_where_its_last_byte_is() -> None:
    tokenizer = gpt2_like_tokenizer()
    ids = tokenizer.encode("the caf€ sat", add_special_tokens=False)
    cut = cut_at_stop(completion(*ids), ["€"], [tokenizer.decode])
    assert tokenizer.decode(cut.token_ids) == "the caf€"
    assert tokenizer.decode(ids[: len(cut.token_ids) - 1]) != "the caf€"


def outputs_of(prompt: list[str], output: list[str], finish_reason: str, stop: list[str]) -> dict:
    tokenizer = llama()
    sampling = SamplingSection(n=2, stop=stop, allow_truncated_support=bool(stop))
    how = Generation(sampling, [tokenizer.eos_token_id], tokenizer, "sampler-0")
    ids = ids_of(tokenizer, *output)
    [one] = _outputs(ids_of(tokenizer, *prompt), [Completion(ids, [0.0] * len(ids), finish_reason)], how)
    return one


@pytest.mark.parametrize(
    ("output", "stop", "text"),
    [
        (["▁for", "▁the"], [" for"], " for"),  # the space of the first word
        (["for", "</s>", "▁the"], ["</s>"], "for"),  # a special token
        (["for", "<|end|>", "s", "▁the"], ["fors"], "fors"),  # in the text as it is stored
        ([*byte_pieces("€"), *byte_pieces(b"\x80"), "▁for"], ["€"], "€"),  # undone by what follows
    ],
)
def test_stop_strings_are_searched_in_the_text_of_the_output(output, stop, text) -> None:
    cut = outputs_of(PROMPT, output, "length", stop)
    assert (cut["text"], cut["finish_reason"]) == (text, "stop")


def test_the_token_that_ends_an_output_is_no_part_of_its_text() -> None:
    ended = outputs_of(PROMPT, ["▁for", "<tag>"], "stop", [])  # an end that the tokenizer does not call special
    assert (ended["text"], len(ended["token_ids"])) == (" for", 2)
    assert outputs_of(PROMPT, ["▁for", "<tag>"], "length", [])["text"] == " for<tag>"
