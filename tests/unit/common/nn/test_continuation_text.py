"""Text of sampled ids is what a reader of the whole text, prompt and output, sees behind the prompt."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from brain_align.common.nn.continuation_text import ContinuationText
from tests.unit.tiny_models import gpt2_like_tokenizer

WORDS = ["▁", "▁for", "▁the", "for", "s", ".", "▁.", ":", "TL", ";", "DR", "▁n", "'", "t", "é"]


def sentencepiece(decoder: decoders.Decoder, *, unigram: bool = False) -> PreTrainedTokenizerFast:
    """Llama-2's kind: `▁` for spaces, bytes for characters that have no piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model: models.Model
    if unigram:
        model = models.Unigram([(piece, -float(rank)) for rank, piece in enumerate(pieces)], 0, byte_fallback=True)
    else:
        vocabulary = {piece: token for token, piece in enumerate(pieces)}
        model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>", "</s>", AddedToken("<|end|>", lstrip=True, rstrip=True, special=True)])
    tokenizer.add_tokens([AddedToken("<tag>", lstrip=True, rstrip=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama() -> PreTrainedTokenizerFast:
    return sentencepiece(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    )


def t5() -> PreTrainedTokenizerFast:
    return sentencepiece(decoders.Metaspace(prepend_scheme="always"), unigram=True)


def gemma() -> PreTrainedTokenizerFast:
    return sentencepiece(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))


def bert() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "[SEP]", "do", "n", "'", "t", "##ing", ".", ",", "walk", "你", "好"]
    tokenizer = Tokenizer(models.WordPiece({word: token for token, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[SEP]"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="[SEP]", unk_token="[UNK]", clean_up_tokenization_spaces=True
    )


def word_ends() -> PreTrainedTokenizerFast:
    """The first GPT's kind: pieces that end words say so."""
    pieces = ["<unk>", "the</w>", "c", "at</w>", ".</w>"]
    tokenizer = Tokenizer(models.BPE({piece: token for token, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.BPEDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<unk>", unk_token="<unk>")


def ids_of(tokenizer: PreTrainedTokenizerFast, *pieces: str) -> list[int]:
    return [tokenizer.get_vocab()[piece] for piece in pieces]


def byte_pieces(text: str | bytes) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in (text.encode() if isinstance(text, str) else text)]


PROMPT = ["<s>", "▁the", "▁", "TL", ";", "DR", ":"]


@pytest.mark.parametrize("kind", [llama, t5, gemma], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("prompt", "output", "text"),
    [
        (PROMPT, ["▁for", "▁the"], " for the"),
        (PROMPT, ["for", "▁the"], "for the"),
        (PROMPT, ["▁", "▁for"], "  for"),
        (PROMPT, ["▁"], " "),
        ([*PROMPT, "</s>", "<s>"], ["▁for", "</s>"], " for"),  # special tokens between prompt and output
        (["<s>", "▁the", *["</s>"] * 20], ["▁for"], " for"),  # more of them than are decoded at first
        (["<s>", "▁the", *["▁"] * 20], ["▁for"], " for"),
        (PROMPT, ["<tag>", "▁for"], "<tag> for"),
        ([*PROMPT, "<tag>"], ["▁for", "<|end|>", "▁the"], " for the"),
    ],
)
def test_the_space_of_the_first_word_is_kept(kind, prompt, output, text) -> None:
    tokenizer = kind()
    assert ContinuationText(tokenizer, ids_of(tokenizer, *prompt))(ids_of(tokenizer, *output)) == text


@pytest.mark.parametrize("kind", [llama, gemma], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("prompt", "output", "text"),
    [
        (byte_pieces("😀"), byte_pieces("😁"), "😁"),
        (byte_pieces("😀" * 9), byte_pieces("😁"), "😁"),  # a longer run of bytes than is decoded at first
        (byte_pieces("€")[:1], [*byte_pieces("€")[1:], "▁for"], "€ for"),  # within a character
        (byte_pieces("€")[:1], ["▁for"], " for"),  # which the output does not complete
        (byte_pieces("é"), [*byte_pieces(b"\x80"), "▁for"], "\ufffd for"),  # the prompt's own character is not undone
    ],
)
def test_bytes_of_characters_belong_to_whom_they_came_from(kind, prompt, output, text) -> None:
    tokenizer = kind()
    assert ContinuationText(tokenizer, ids_of(tokenizer, *PROMPT, *prompt))(ids_of(tokenizer, *output)) == text


def test_a_character_that_the_prompt_began_is_the_output_s_with_byte_level_pieces() -> None:
    tokenizer = gpt2_like_tokenizer()
    ids = tokenizer.encode("the cat €", add_special_tokens=False)
    assert ContinuationText(tokenizer, ids[:-1])(ids[-1:]) == "€"
    assert ContinuationText(tokenizer, ids[:-2])(ids[-2:]) == "€"


def test_no_space_is_cleaned_up() -> None:
    tokenizer = bert()
    text = ContinuationText(tokenizer, ids_of(tokenizer, "walk"))
    assert text(ids_of(tokenizer, "##ing", "你", "好", "[SEP]")) == "ing 你 好"
    gpt2 = gpt2_like_tokenizer()
    gpt2.clean_up_tokenization_spaces = True
    ids = gpt2.encode(" do n't . .", add_special_tokens=False)
    assert ContinuationText(gpt2, gpt2.encode("the"))(ids) == " do n't . ."


def test_special_tokens_are_kept_where_they_are_asked_for() -> None:
    tokenizer = llama()
    text = ContinuationText(tokenizer, ids_of(tokenizer, *PROMPT, "<|end|>"), special_tokens=True)
    assert text(ids_of(tokenizer, "▁for", "<|end|>")) == " for<|end|>"


def test_ids_that_the_tokenizer_does_not_have_are_no_text() -> None:
    tokenizer = llama()
    beyond = len(tokenizer) + 7
    assert ContinuationText(tokenizer, [*ids_of(tokenizer, *PROMPT), beyond])([beyond, beyond]) == ""


@pytest.mark.parametrize(
    "kind", [llama, t5, gemma, bert, word_ends, gpt2_like_tokenizer], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("special_tokens", [False, True])
def test_text_is_that_of_prompt_and_output_without_the_prompt_s(kind, special_tokens) -> None:
    tokenizer, chance = kind(), random.Random(5)
    size = len(tokenizer)
    compared = 0
    for _ in range(300):
        prompt = [chance.randrange(size) for _ in range(chance.randrange(1, 40))]
        output = [chance.randrange(size) for _ in range(chance.randrange(1, 12))]

        def decode(ids: list[int]) -> str:
            return tokenizer.decode(ids, skip_special_tokens=not special_tokens, clean_up_tokenization_spaces=False)

        before, whole = decode(prompt), decode(prompt + output)
        if whole.startswith(before):  # bytes are judged by the tests above
            text = ContinuationText(tokenizer, prompt, special_tokens=special_tokens)(output)
            assert text == whole.removeprefix(before), (prompt, output)
            compared += 1
    assert compared > 150


def test_a_long_prompt_is_not_decoded_with_each_output() -> None:
    class Counting:
        decoded = 0

        def decode(self, ids: list[int], **_settings) -> str:
            self.decoded += len(ids)
            return "".join(f" {token}" for token in ids)

    tokenizer = Counting()
    text = ContinuationText(tokenizer, list(range(100_000)))
    assert [text([7, 8]) for _ in range(64)] == [" 7 8"] * 64
    assert tokenizer.decoded < 64 * 20
