"""Encoding of texts to the policy's token ids.

A prompt is encoded as it is, or as a conversation in a chat template; a completion given as text as if it was sampled.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from brain_align.common.data.conversations import turns_of
from brain_align.common.data.prompts import Encode, RefusedPromptError
from brain_align.common.errors import UserError, first_line

AS_THEY_ARE = "none"
OF_THE_MODEL = "model"


def prompt_encoding(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> Encode:
    """Return the encoding of prompts.

    Args:
        tokenizer: the policy's.
        chat_template: `data.chat_template` of the recipe: none, model, or the file of a template.

    Raises:
        UserError: the template does not exist.
    """
    if chat_template == AS_THEY_ARE:
        return PlainTexts(tokenizer)
    if chat_template != OF_THE_MODEL:
        return Conversations(tokenizer, _read_template(chat_template))
    if not tokenizer.chat_template:
        raise UserError(
            "data.chat_template=model, but the policy's tokenizer has no chat template; set it to the file of one, or "
            "to none."
        )
    return Conversations(tokenizer, None)


def completion_encoding(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Return the encoding of completions given as texts: without BOS, with the end-of-text token."""

    def encode(text: str) -> list[int]:
        [ids] = _plain(tokenizer, [text])
        return [*ids, tokenizer.eos_token_id]

    return encode


class PlainTexts:
    """Texts as they are, after the tokens that the tokenizer puts before every text (BOS), with nothing appended.

    A text that already begins with those tokens (`<s>`, say) does not get them twice. Tokens that a tokenizer appends
    to a text, such as EOS, would end the prompt before its output begins.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before = _put_before_texts(tokenizer)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        rows = _plain(self._tokenizer, texts)
        count = len(self._before)
        return [row if row[:count] == self._before else self._before + row for row in rows]


class Conversations:
    """Conversations in a chat template, up to the beginning of the assistant's turn.

    The template writes all special tokens itself; the tokenizer adds none.

    Args:
        tokenizer: the policy's.
        template: its text; None for the tokenizer's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text (see `brain_align.common.data.conversations`).

        Raises:
            RefusedPromptError: the template rejects one.
        """
        return _plain(self._tokenizer, [self._rendered(index, text) for index, text in enumerate(texts)])

    def _rendered(self, index: int, text: str) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                turns_of(text), tokenize=False, add_generation_prompt=True, chat_template=self._template
            )
        except TemplateError as error:
            raise RefusedPromptError(index, f"the chat template rejects it: {first_line(error)}") from None


def _read_template(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template={file} cannot be read as a template file ({error}); give a file's path, or set model "
            f"or none."
        ) from None


def _plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [list(row) for row in rows]


def _put_before_texts(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that a tokenizer puts before every text."""
    [bare] = _plain(tokenizer, ["a"])
    whole = list(tokenizer("a")["input_ids"])
    places = [place for place in range(len(whole)) if whole[place : place + len(bare)] == bare]
    return whole[: places[0]] if places else []
