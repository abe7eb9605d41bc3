import unicodedata

import pytest

from brain_align.common.printable import code_span, fenced, printable

BIDIRECTIONAL = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
CONTROLS = [
    character
    for character in map(chr, range(0x110000))
    if unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in BIDIRECTIONAL
]


def test_every_control_character_becomes_an_escape():
    for character in set(CONTROLS) - {"\n", "\t"}:
        shown = printable(f"a{character}b")
        assert shown.isprintable() and shown.startswith("a\\") and shown.endswith("b"), hex(ord(character))
    assert printable("\x1b]52;c;eA==\x07\u202ex\udcff") == "\\x1b]52;c;eA==\\x07\\u202ex\\udcff"


@pytest.mark.parametrize("text", ["", "α – ‘ü’ 日本語 👩‍🔬 שלום", "two\nlines\tand a tab", "[/INST] :smile: [link=x]"])
def test_other_text_stays(text: str):
    assert printable(text) == text


def test_line_ends_of_windows_are_line_ends():
    assert printable("a\r\nb\rc") == "a\nb\\rc"


def test_no_text_ends_its_fence():
    text = "before\n````\n![](http://tracker/x.png) <script>\n```"
    first, *lines, last = fenced(text)
    assert first == last == "`````" and "\n".join(lines) == text
    assert fenced("plain") == ["```", "plain", "```"]


def test_no_text_ends_its_code_span():
    assert code_span("a `` b\n<img>") == "``` a `` b <img> ```"
    assert code_span("plain <b>") == "`plain <b>`"
