"""Prompts: read from rows, skipped where they do not fit, and drawn in a deterministic order."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from brain_align.common.data.conversations import (
    USER,
    Message,
    MessagesError,
    as_text,
    messages_of,
    reply_to,
    turns_of,
)
from brain_align.common.data.prompt_set import PromptSet
from brain_align.common.data.row_files import Row
from brain_align.common.errors import UserError
from brain_align.common.identity import seed_from

_ROWS = 1024
_Texts = tuple[int, str, str | None]  # a row's number (1-based), its prompt and its gold output

Encode = Callable[[Sequence[str]], list[list[int]]]  # converts texts of prompts to the model's token ids of each


CheckText = Callable[[str], list[int]]  # raises a RefusedPromptError for a text that cannot be encoded


class RefusedPromptError(Exception):
    """A prompt cannot be encoded; `index` is its place among the texts to encode."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


@dataclass(frozen=True)
class PromptColumns:
    """The columns of a source, and the form of its prompts."""

    prompt: str
    gold: str | None  # of gold outputs, if there are any
    conversations: bool = False  # whether a prompt may be a list of messages
    settings: str = "data.prompt_column and data.gold_column"  # for messages: where the names come from

    def names(self) -> tuple[str, ...]:
        """Return the columns to read."""
        return (self.prompt,) if self.gold is None else (self.prompt, self.gold)


def load_prompts(
    rows: Iterable[Row],
    columns: PromptColumns,
    encode: Encode,
    max_tokens: int,
    where: str,
    check_gold: CheckText | None = None,
) -> PromptSet:
    """Read prompts from rows and tokenise them; skip and count empty ones, those over `max_tokens` or without gold.

    Two rows with the same prompt are two prompts: a prompt's id is made from its row and its text. Errors call the
    source `where`. `check_gold` raises a RefusedPromptError for a gold output that cannot be encoded.

    Raises:
        UserError: a row lacks a column, holds neither text nor messages, or cannot be encoded (the row is named); or
            no prompt is usable.
    """
    found = PromptSet()
    numbered = enumerate(rows, start=1)
    while part := list(islice(numbered, _ROWS)):
        texts = [(number, *_read(row, number, columns, where)) for number, row in part]
        _take(found, texts, encode, max_tokens, where, columns, check_gold)
    if not found:
        nothing = f"{where} holds no usable prompt: {found.empty} are empty and {found.too_long} are longer than "
        advice = "check it, or raise data.max_prompt_tokens."
        if found.without_gold.count:
            advice = (
                f"{found.without_gold} have null in column {columns.gold!r}; set data.gold_column=null if there are no "
                f"reference outputs."
            )
        raise UserError(f"{nothing}{max_tokens} tokens; {advice}")
    return found


def _take(
    found: PromptSet,
    texts: Sequence[_Texts],
    encode: Encode,
    max_tokens: int,
    where: str,
    columns: PromptColumns,
    check_gold: CheckText | None,
) -> None:
    """Tokenise some rows, and add the usable prompts."""
    written = [one for one in texts if one[1].strip()]
    token_ids = dict(zip((number for number, _, _ in written), _encoded(written, encode, where), strict=True))
    usable = []
    for number, text, gold in texts:
        ids = token_ids.get(number)
        if not ids:
            found.empty.add(number)
        elif len(ids) > max_tokens:
            found.too_long.add(number)
        elif gold is None and columns.gold is not None:
            found.without_gold.add(number)
        else:
            if check_gold is not None and gold is not None:
                _encoded([(number, gold, None)], lambda texts: [check_gold(texts[0])], where)
            usable.append((number, text, ids, gold))
    found.add(usable)


def _encoded(rows: Sequence[_Texts], encode: Encode, where: str) -> list[list[int]]:
    if not rows:
        return []
    try:
        return encode([text for _, text, _ in rows])
    except RefusedPromptError as error:
        raise UserError(
            f"{where}, row {rows[error.index][0]}, cannot be encoded ({error}); fix or remove the row, or set another "
            f"data.chat_template."
        ) from None


def _read(row: Row, number: int, columns: PromptColumns, where: str) -> tuple[str, str | None]:
    """Return the texts of a row's prompt (empty for null) and gold output (None for null, and where there are none)."""
    prompt = prompt_text(row, number, columns, where)
    if not prompt or columns.gold is None:
        return prompt or "", None
    return prompt, reply_text(row, number, columns.gold, prompt, columns, where)


def prompt_text(row: Row, number: int, columns: PromptColumns, where: str) -> str | None:
    """Return the text of a row's prompt; None for null.

    Raises:
        UserError: the row, which the message names, has no text there, and no messages that may be one.
    """
    value = row.get(columns.prompt)
    if isinstance(value, str):  # a text, even if it looks like messages
        return as_text([Message(role=USER, content=value)]) if columns.conversations else value
    messages = _messages(row, number, columns.prompt, columns, where)
    return None if messages is None else as_text(messages)


def reply_text(row: Row, number: int, column: str, prompt: str, columns: PromptColumns, where: str) -> str | None:
    """Return the text of an output that a row gives for its prompt; None for null. Raises as `prompt_text` does."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    messages = _messages(row, number, column, columns, where)
    if messages is None:
        return None
    reply = reply_to(turns_of(prompt), messages)
    if reply is None:
        raise UserError(
            f"{where}, row {number}, column {column!r}: the prompt is not followed by exactly one assistant turn "
            f"(a conversation must begin with the very turns of the prompt); fix or remove the row."
        )
    return reply


def _messages(row: Row, number: int, column: str, columns: PromptColumns, where: str) -> list[Message] | None:
    value = row.get(column)
    if column not in row:
        raise UserError(
            f"{where}, row {number}, has no text in column {column!r} (its columns: {', '.join(row)}); set "
            f"{columns.settings}."
        )
    if value is None:
        return None
    try:
        messages = messages_of(value)
    except MessagesError as error:
        wanted = "a text or a list of messages" if columns.conversations else "a text"
        raise UserError(
            f"{where}, row {number}, has no text in column {column!r}: {error}; it must be {wanted}, fix or remove the "
            f"row."
        ) from None
    if not columns.conversations:
        raise UserError(
            f"{where}, row {number}, has a list of messages in column {column!r}; set data.chat_template to model or "
            f"to a template file."
        )
    return messages


class PromptOrder:
    """The prompts that each round of Algorithm 1 draws: a seeded shuffle per epoch, no prompt twice in a round."""

    def __init__(self, prompts: int, per_round: int, seed: int) -> None:
        if per_round > prompts:
            raise UserError(
                f"algorithm.prompts_per_round={per_round} is more than the {prompts} usable training prompts; lower it,"
                f" or provide more prompts."
            )
        self._prompts = prompts
        self._per_round = per_round
        self._seed = seed

    def indices(self, round_: int) -> list[int]:
        """Return the indices of the prompts of a round (0-based); the few that an epoch cannot place vary."""
        epoch, slot = divmod(round_, self._prompts // self._per_round)
        generator = np.random.RandomState(seed_from("prompt order", self._seed, epoch) % 2**32)  # a frozen algorithm
        order = generator.permutation(self._prompts)
        return [int(index) for index in order[slot * self._per_round : (slot + 1) * self._per_round]]
