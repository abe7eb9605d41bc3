import pytest
from tokenizers import AddedToken
from transformers import GPT2TokenizerFast

from brain_align.common.errors import UserError
from brain_align.scorer.text_models.formats import EOS, FORMATS, HH, START, TLDR, normalise_tldr_prompt
from tests.locations import SHARED
from tests.unit.tiny_models import gpt2_like_tokenizer

GPT2 = SHARED / "data" / "tokenizers" / "gpt2"


@pytest.fixture(scope="module", params=["tiny", "gpt2"])
def tokenizer(request):
    if request.param == "tiny":
        return gpt2_like_tokenizer()
    if not GPT2.is_dir():
        pytest.skip(f"the real GPT-2 vocabulary is not in {GPT2}")
    return GPT2TokenizerFast.from_pretrained(GPT2)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_settings_are_those_of_the_published_checkpoints():
    assert FORMATS == {"tldr": TLDR, "hh": HH}
    assert (TLDR.checkpoint_file, TLDR.tokenizer) == ("pytorch_model.bin", "EleutherAI/gpt-j-6B")
    assert (TLDR.max_tokens, TLDR.truncation_side) == (550, "right")
    assert (HH.checkpoint_file, HH.tokenizer) == ("hf_ckpt.pt", "gpt2")
    assert (HH.max_tokens, HH.truncation_side) == (1024, "left")


# -- texts


@pytest.mark.parametrize(
    ("prompt", "output", "tldr", "hh"),
    [
        ("a TL;DR:", " b", f"{START}a TL;DR: b{EOS}", f"a TL;DR: b{EOS}"),
        ("a", "", f"{START}a{EOS}", f"a{EOS}"),
        ("", "", f"{START}{EOS}", EOS),
        ("a", f" b{EOS}", f"{START}a b{EOS}", f"a b{EOS}"),
        ("a", f"{EOS} b{EOS}{EOS} c", f"{START}a b c{EOS}", f"a b c{EOS}"),
        (f"a{EOS}", " b", f"{START}a b{EOS}", f"a b{EOS}"),
        ("a", "<|endof<|endoftext|>text|> b", f"{START}a b{EOS}", f"a b{EOS}"),
        ("a<|endof", "text|> b", f"{START}a b{EOS}", f"a b{EOS}"),
        ("a TL;DR:", " b TL;DR: c", f"{START}a TL;DR: b TL;DR: c{EOS}", f"a TL;DR: b TL;DR: c{EOS}"),
        ("ä", " ß日本\n", f"{START}ä ß日本\n{EOS}", f"ä ß日本\n{EOS}"),
    ],
)
def test_texts(prompt, output, tldr, hh):
    assert TLDR.text(prompt, output) == tldr
    assert HH.text(prompt, output) == hh


@pytest.mark.parametrize(
    ("prompt", "gold", "tldr"),
    [
        ("post\nTL;DR:", "gold", "post\nTL;DR: gold"),
        ("post\nTL;DR:", " gold", "post\nTL;DR: gold"),  # one space, whichever way the data set has it
        ("post\nTL;DR: ", "gold", "post\nTL;DR: gold"),
        ("it says TL;DR: so\nTL;DR:", "gold", "it says TL;DR: so\nTL;DR: gold"),
        ("post", "gold", "postTL;DR: gold"),
        ("post\nTL;DR:", f"gold{EOS}", "post\nTL;DR: gold"),
        ("post\nTL;DR:", "", "post\nTL;DR: "),
    ],
)
def test_gold_texts(prompt, gold, tldr):
    assert TLDR.gold_text(prompt, gold) == START + tldr + EOS
    assert HH.gold_text("\n\nAssistant:", gold) == HH.text("\n\nAssistant:", gold)


# -- encoding


def test_tldr_is_read_at_the_token_before_eos_and_hh_at_eos(tokenizer):
    for format, offset in ((TLDR, -1), (HH, 0)):
        texts = [format.text("the cat", output) for output in (" sat on the mat", "", " sat")]
        for encoded, text in zip(format.encode(tokenizer, texts), texts, strict=True):
            expected = ids(tokenizer, text)
            assert encoded.token_ids == expected
            assert expected.index(tokenizer.eos_token_id) == len(expected) - 1
            assert encoded.read_index == len(expected) - 1 + offset
            assert encoded.read == expected[: len(expected) + offset]


def test_texts_of_nothing(tokenizer):
    start = ids(tokenizer, START)
    (encoded,) = TLDR.encode(tokenizer, [TLDR.text("", "")])
    assert encoded.token_ids == [*start, tokenizer.eos_token_id]
    assert encoded.read == start
    (encoded,) = HH.encode(tokenizer, [HH.text("", "")])
    assert encoded.token_ids == encoded.read == [tokenizer.eos_token_id]


def test_tldr_loses_tokens_on_the_right_and_is_read_at_the_last_one_then(tokenizer):
    text = TLDR.text(" the cat" * 600, " sat")
    encoded, short = TLDR.encode(tokenizer, [text, TLDR.text("the", " cat")])
    assert encoded.token_ids == encoded.read == ids(tokenizer, text)[:550]
    assert tokenizer.eos_token_id not in encoded.token_ids
    assert short.token_ids == ids(tokenizer, TLDR.text("the", " cat"))


def test_hh_loses_tokens_on_the_left_and_never_eos(tokenizer):
    text = HH.text(" the cat" * 1100, " sat")
    encoded, short = HH.encode(tokenizer, [text, HH.text("the", " cat")])
    assert encoded.token_ids == encoded.read == ids(tokenizer, text)[-1024:]
    assert encoded.token_ids[-1] == tokenizer.eos_token_id
    assert short.token_ids == ids(tokenizer, HH.text("the", " cat"))


def test_truncation_to_exactly_the_length_and_to_one_less(tokenizer):
    text = TLDR.text("the cat", " sat")
    length = len(ids(tokenizer, text))

    def encode(max_positions):
        return TLDR.encode(tokenizer, [text], max_positions)[0]

    assert encode(length).read_index == length - 2  # EOS is there, the token before it is read
    assert encode(length - 1).token_ids == ids(tokenizer, text)[:-1]
    assert encode(length - 1).read_index == length - 2  # EOS is cut off: the same token
    assert encode(length - 2).read_index == length - 3


def test_a_model_that_reads_more_than_the_format_does_not_make_it_longer(tokenizer):
    (encoded,) = TLDR.encode(tokenizer, [TLDR.text(" the cat" * 600, "")], 2048)
    assert len(encoded.token_ids) == 550


def test_the_start_of_text_is_ordinary_pieces(tokenizer):
    (encoded,) = TLDR.encode(tokenizer, [TLDR.text("the", " cat")])
    assert encoded.token_ids == [*ids(tokenizer, START), *ids(tokenizer, "the cat"), tokenizer.eos_token_id]
    assert len(ids(tokenizer, START)) > 3


def test_the_real_vocabulary_gives_the_known_ids():
    if not GPT2.is_dir():
        pytest.skip(f"the real GPT-2 vocabulary is not in {GPT2}")
    (encoded,) = TLDR.encode(GPT2TokenizerFast.from_pretrained(GPT2), [TLDR.text("a\nTL;DR:", " b")])
    assert encoded.token_ids == [
        *[27, 91, 9688, 1659, 5239, 91, 29],  # <|startoftext|>
        *[64, 198, 14990, 26, 7707, 25, 275],
        50256,
    ]


def test_the_tokenizers_own_settings_change_nothing(tokenizer):
    text = HH.text(" the cat" * 20, " sat")
    before = HH.encode(tokenizer, [text], max_positions=8)
    sides = tokenizer.truncation_side, tokenizer.padding_side
    tokenizer.truncation_side, tokenizer.padding_side = "right", "left"
    after = HH.encode(tokenizer, [text], max_positions=8)
    tokenizer.truncation_side, tokenizer.padding_side = sides
    assert before == after


# -- tokenizers


def test_tokenizers_that_fit(tokenizer):
    TLDR.check_tokenizer(tokenizer, "here")
    HH.check_tokenizer(tokenizer, "here")


def test_a_tokenizer_with_another_eos_is_refused():
    with pytest.raises(UserError, match=r"in here .* its end of text is '</s>'"):
        HH.check_tokenizer(gpt2_like_tokenizer(eos="</s>"), "here")


def test_a_tokenizer_with_a_special_start_of_text_is_refused():
    tokenizer = gpt2_like_tokenizer()
    tokenizer.add_tokens([AddedToken(START, special=True)])
    HH.check_tokenizer(tokenizer, "here")
    with pytest.raises(UserError, match="as one token"):
        TLDR.check_tokenizer(tokenizer, "here")


# -- TL;DR prompts


def test_a_short_prompt_is_left_as_it_is(tokenizer):
    prompt = "SUBREDDIT: r/cats\nTITLE: the cat\nPOST: the cat sat.\nTL;DR:"
    assert normalise_tldr_prompt(tokenizer, prompt) == prompt


def test_what_follows_the_first_marker_is_dropped(tokenizer):
    assert normalise_tldr_prompt(tokenizer, " the cat \n TL;DR: sat\nTL;DR:") == "the cat\nTL;DR:"
    assert normalise_tldr_prompt(tokenizer, "the cat") == "the cat\nTL;DR:"
    assert normalise_tldr_prompt(tokenizer, f"the{EOS} cat") == "the cat\nTL;DR:"


def test_a_long_prompt_keeps_its_marker(tokenizer):
    normal = normalise_tldr_prompt(tokenizer, "the cat sat on the mat " * 200 + "\nTL;DR:", max_tokens=50)
    assert len(ids(tokenizer, normal)) <= 50
    assert normal.endswith("\nTL;DR:")
    assert len(ids(tokenizer, normal)) >= 48
