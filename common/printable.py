"""Foreign text as it may be shown: prompts, outputs, paths and error messages may hold anything."""

import re

_DANGEROUS = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f"  # C0 but tab and line feed: they move the cursor, clear the screen, write the clipboard
    "\x80-\x9f"  # C1: one of them begins a sequence as ESC does
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls: what is read is not what is there
    "\ud800-\udfff"  # lone surrogates, as in paths that are not UTF-8: no encoding can write them
    "]"
)


def printable(text: str) -> str:
    r"""Return a text that a terminal or a page shows as it is, with each control character as its escape, say `\x1b`.

    Tabs and line ends stay.
    """
    return _DANGEROUS.sub(_escape, text.replace("\r\n", "\n"))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode()


def fenced(text: str) -> list[str]:
    """Return the lines of a text in a Markdown document that shows it as it is, whatever Markdown or HTML it holds."""
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return [fence, *printable(text).split("\n"), fence]


def code_span(text: str) -> str:
    """Return one line of a text in a Markdown document that shows it as it is."""
    ticks = "`" * (_longest_ticks(text) + 1)
    space = " " if "`" in text else ""
    return f"{ticks}{space}{' '.join(printable(text).split())}{space}{ticks}"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
