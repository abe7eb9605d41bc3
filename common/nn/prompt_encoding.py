"""From texts to the token ids that the policy reads.

A prompt is encoded as it is, or as a conversation in a chat template; a completion that comes as a text as if sampled.
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
    """How prompts are encoded.

    Args:
        tokenizer: the policy's.
        chat_template: `data.chat_template` of the recipe: none, model, or the file of a template.

    Raises:
        UserError: there is no such template.
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
    """How completions are encoded that come as texts: without what stands before texts (BOS), with the end of text."""

    def encode(text: str) -> list[int]:
        [ids] = _plain(tokenizer, [text])
        return [*ids, tokenizer.eos_token_id]

    return encode


class PlainTexts:
    """Texts as they stand, after the tokens that the tokenizer puts before every text (BOS), and nothing behind them.

    A text that already begins with those tokens (`<s>`, say) does not get them twice. What a tokenizer puts behind a
    text, such as EOS, would end the prompt before its output begins.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before = _put_before_texts(tokenizer)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text."""
        rows = _plain(self._tokenizer, texts)
        count = len(self._before)
        return [row if row[:count] == self._before else self._before + row for row in rows]


class Conversations:
    """Conversations in a chat template, up to where the assistant's turn begins.

    The template writes all special tokens itself: the tokenizer adds none to them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        """Take a template; None: the tokenizer's own."""
        self._tokenizer = tokenizer
        self._template = template

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text (see `brain_align.common.data.conversations`).

        Raises:
            RefusedPromptError: the template refuses one.
        """
        return _plain(self._tokenizer, [self._rendered(index, text) for index, text in enumerate(texts)])

    def _rendered(self, index: int, text: str) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                turns_of(text), tokenize=False, add_generation_prompt=True, chat_template=self._template
            )
        except TemplateError as error:
            raise RefusedPromptError(index, f"the chat template says: {first_line(error)}") from None


def _read_template(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template={file} cannot be read as the file of a template ({error}); give its path, or model or "
            f"none."
        ) from None


def _plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [list(row) for row in rows]


def _put_before_texts(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that a tokenizer puts before every text."""
    [bare] = _plain(tokenizer, ["a"])
    whole = list(tokenizer("a")["input_ids"])
    places = [place for place in range(len(whole)) if whole[place : place + len(bare)] == bare]
    return whole[: places[0]] if places else []
