"""Token ids of texts: whole ones, continuations of others, and conversations whose contents spell control tokens."""

import re
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

_CONTEXTS = (":", "\n", "a")  # texts to encode a continuation behind; the first that does not merge with it
_FIRST_MARK = 0x100000  # of Unicode's private use areas: no text has it


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, literal: bool = False) -> list[list[int]]:
    """Return the ids of texts, without the tokens that the tokenizer puts around them.

    Control tokens that a `literal` text spells are read as any other text.
    """
    kept = tokenizer.split_special_tokens
    tokenizer.split_special_tokens = literal  # as an argument, tokenizers without Rust ignore it
    try:
        rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    finally:
        tokenizer.split_special_tokens = kept
    return [list(row) for row in rows]


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, literal: bool = False) -> list[int]:
    """Return the ids of a text that continues another.

    SentencePiece puts a space before a text that stands alone, which a continuation does not have.
    """
    alone, *rows = token_ids(tokenizer, [text, *(context + text for context in _CONTEXTS)], literal=literal)
    for context, row in zip(token_ids(tokenizer, _CONTEXTS), rows, strict=True):
        if row[: len(context)] == context:
            return row[len(context) :]
    return alone


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts that a tokenizer reads as control tokens, the longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    known = {token for token in added | set(tokenizer.all_special_tokens) if token.strip()}
    return sorted(known, key=lambda token: (-len(token), token))


def tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer puts before and after every text."""
    [bare] = token_ids(tokenizer, ["a"])
    whole = list(tokenizer("a")["input_ids"])
    places = [place for place in range(len(whole)) if whole[place : place + len(bare)] == bare]
    return (whole[: places[0]], whole[places[0] + len(bare) :]) if places else ([], [])


class LiteralContents:
    """Encodes renderings so that control tokens are those that the chat template wrote, not what somebody said."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._controls = control_tokens(tokenizer)
        self._marks = {token: chr(_FIRST_MARK + number) for number, token in enumerate(self._controls)}
        self._pattern = re.compile("|".join(map(re.escape, self._controls)) or r"(?!)")

    def spelt_in(self, contents: Sequence[str]) -> bool:
        """Return whether one of these texts spells a control token."""
        return any(self._pattern.search(content) for content in contents)

    def begun(self, text: str, more: str) -> int:
        """Return how many characters at the end of a text begin a control token that `more` completes."""
        longest = max(map(len, self._controls), default=0)
        if longest < 2 or not self._pattern.search(text[1 - longest :] + more[: longest - 1]):
            return 0
        splits = ((token, place) for token in self._controls for place in range(1, len(token)))
        both = (place for token, place in splits if text.endswith(token[:place]) and more.startswith(token[place:]))
        return max(both, default=0)

    def encode(self, render: Callable[[Callable[[str], str]], str], contents: Sequence[str]) -> list[int]:
        """Return the ids of a conversation; `render` renders it after applying a function to each of its contents."""
        if not self.spelt_in(contents):
            [row] = token_ids(self._tokenizer, [render(lambda content: content)])
            return row
        rendering = render(lambda content: self._pattern.sub(lambda found: self._marks[found[0]], content))
        ids: list[int] = []
        before = ""  # the control token, written by the template, that a piece follows
        for piece in re.split(f"({self._pattern.pattern})", rendering):
            if piece in self._marks:
                before = piece
                ids.append(self._tokenizer.convert_tokens_to_ids(piece))
            elif piece:
                ids += self._piece(before, piece)
        return ids

    def _piece(self, before: str, piece: str) -> list[int]:
        said = piece
        for token, mark in self._marks.items():
            said = said.replace(mark, token)
        if said != piece:
            return continuation_ids(self._tokenizer, said, literal=True)
        [row] = token_ids(self._tokenizer, [before + piece])
        return row[1:] if before else row
