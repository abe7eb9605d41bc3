"""The text of token ids that continue a prompt.

Decoders treat tokens by what stands before them: SentencePiece drops the space of a text's first word, WordPiece joins
pieces, and bytes of one character may lie in several tokens. So the text of a continuation is that of prompt and
continuation together, without that of the prompt.
"""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

Decode = Callable[[Sequence[int]], str]

_INCOMPLETE = "\ufffd"
"""The character that decoders write for bytes that do not form one, or not yet."""
_FEWEST = 8
"""Tokens of the prompt that are decoded with each continuation; more where these do not suffice."""
_LONGEST_CHARACTERS = 16
"""Tokens at the end of a prompt that may spell characters byte by byte."""


class ContinuationText:
    """The text of continuations of one prompt; each costs what its own tokens cost, however long the prompt is.

    Args:
        tokenizer: which made the prompt's ids.
        prompt: its token ids.
        special_tokens: whether texts include special tokens (`</s>`).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], *, special_tokens: bool = False
    ) -> None:
        self._prompt = list(prompt)
        # Cleaning up would remove spaces that were sampled.
        self._decode: Decode = lambda ids: tokenizer.decode(
            list(ids), skip_special_tokens=not special_tokens, clean_up_tokenization_spaces=False
        )
        self._context = _context(self._decode, self._prompt)
        self._before = self._decode(self._context)

    def __call__(self, ids: Sequence[int]) -> str:
        """Return the text that token ids add to the prompt's."""
        whole = self._decode([*self._context, *ids])
        if whole.startswith(self._before):
            return whole[len(self._before) :]
        if not self._before.endswith(_INCOMPLETE):
            # The prompt is complete, but bytes at the beginning of the continuation form no characters, and a decoder
            # gives up all adjacent bytes together: those of the prompt are kept away from them.
            for end in range(len(self._prompt) - 1, max(0, len(self._prompt) - _LONGEST_CHARACTERS), -1):
                context = _context(self._decode, self._prompt[:end])
                before, apart = self._decode(context), self._decode([*context, *ids])
                if before and apart.startswith(before):
                    return apart[len(before) :]
        # The continuation completes a character that the prompt began.
        pairs = enumerate(zip(self._before, whole, strict=False))
        return whole[next((place for place, (ours, theirs) in pairs if ours != theirs), len(whole)) :]


def _context(decode: Decode, prompt: list[int]) -> list[int]:
    """Return the end of a prompt that suffices for decoding what follows it.

    It has a character besides spaces and incomplete ones, so that neither is its first token the one before a
    continuation, nor does it begin within the bytes of a character that the continuation completes.
    """
    length = _FEWEST
    while length < len(prompt):
        context = prompt[-length:]
        if decode(context).replace(_INCOMPLETE, "").strip():
            return context
        length *= 2
    return prompt
