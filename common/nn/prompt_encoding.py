"""Encoding of texts to the policy's token ids.

A prompt is encoded as it is, or as a conversation in a chat template; a completion given as text as if it was sampled.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from brain_align.common.data.conversations import RenderingError, rendered, turns_of
from brain_align.common.data.prompts import Encode, RefusedPromptError
from brain_align.common.errors import UserError

AS_THEY_ARE = "none"
OF_THE_MODEL = "model"


def prompt_encoding(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> Encode:
    """Return the encoding of prompts by the policy's tokenizer and the recipe's `data.chat_template`.

    Raises:
        UserError: the template does not exist.
    """
    if chat_template == AS_THEY_ARE:
        return _plain_texts(tokenizer)
    if chat_template != OF_THE_MODEL:
        return _conversations(tokenizer, _read_template(chat_template))
    if not tokenizer.chat_template:
        raise UserError(
            "data.chat_template=model, but the policy's tokenizer has no chat template; set it to the file of one, or "
            "to none."
        )
    return _conversations(tokenizer, None)


def completion_encoding(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Return the encoding of completions given as texts: without BOS, with the end-of-text token."""

    def encode(text: str) -> list[int]:
        [ids] = _token_ids(tokenizer, [text])
        return [*ids, tokenizer.eos_token_id]

    return encode


def _plain_texts(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Return the encoding of texts as they are, after the tokens that the tokenizer puts before every text (BOS).

    A text that already begins with those tokens (`<s>`, say) does not get them twice. Tokens that a tokenizer appends
    to a text, such as EOS, are left out: they would end the prompt before its output begins.
    """
    before = _put_before_texts(tokenizer)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        rows = _token_ids(tokenizer, texts)
        return [row if row[: len(before)] == before else before + row for row in rows]

    return encode


def _conversations(tokenizer: PreTrainedTokenizerBase, template: str | None) -> Encode:
    """Return the encoding of conversations in a chat template, up to the beginning of the assistant's turn.

    The template (None: the tokenizer's own) writes all special tokens itself; the tokenizer adds none. A text that the
    template rejects raises a RefusedPromptError.
    """

    def prompt(index: int, text: str) -> str:
        try:
            return rendered(tokenizer, turns_of(text), template, then="reply")
        except RenderingError as error:
            raise RefusedPromptError(index, str(error)) from None

    return lambda texts: _token_ids(tokenizer, [prompt(index, text) for index, text in enumerate(texts)])


def _read_template(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template={file} cannot be read as a template file ({error}); give a file's path, or set model "
            f"or none."
        ) from None


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [list(row) for row in rows]


def _put_before_texts(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that a tokenizer puts before every text."""
    [bare] = _token_ids(tokenizer, ["a"])
    whole = list(tokenizer("a")["input_ids"])
    places = [place for place in range(len(whole)) if whole[place : place + len(bare)] == bare]
    return whole[: places[0]] if places else []
