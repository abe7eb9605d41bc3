"""Conversations as texts: what scorers, reward functions and people see of a prompt of several turns.

GROUPS has one text a prompt. That of a single turn of the user is what the user says; that of any other conversation is
the JSON of its messages, from which whoever needs the turns gets them back (`turns_of`).
"""

import json
from collections.abc import Sequence
from typing import Any, TypedDict

USER = "user"
ASSISTANT = "assistant"


class Message(TypedDict):
    """One turn."""

    role: str
    content: str


def as_text(messages: Sequence[Message]) -> str:
    """The text of a conversation; `turns_of` is the way back."""
    if len(messages) == 1 and messages[0]["role"] == USER and _parsed(messages[0]["content"]) is None:
        return messages[0]["content"]
    return json.dumps(list(messages), ensure_ascii=False)


def turns_of(text: str) -> list[Message]:
    """The turns of a prompt's text; one that is no conversation is a single turn of the user."""
    return _parsed(text) or [Message(role=USER, content=text)]


def is_conversation(text: str) -> bool:
    """Whether a prompt's text stands for other turns than a single one of the user."""
    return _parsed(text) is not None


def messages_of(value: Any) -> list[Message] | None:
    """A value that was read from somewhere as messages; None where it is no list of `{"role", "content"}` texts."""
    if not isinstance(value, list) or not value:
        return None
    for turn in value:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            return None
    return [Message(role=turn["role"], content=turn["content"]) for turn in value]


def reply_to(prompt: Sequence[Message], messages: Sequence[Message]) -> str | None:
    """What the assistant says: in a reply alone, or in the whole conversation, which begins with the prompt.

    Returns:
        The text; None where anything but one turn of the assistant follows the prompt.
    """
    start = len(prompt) if list(messages[: len(prompt)]) == list(prompt) else 0
    rest = messages[start:]
    return rest[0]["content"] if len(rest) == 1 and rest[0]["role"] == ASSISTANT else None


def _parsed(text: str) -> list[Message] | None:
    if not text.startswith('[{"'):
        return None
    try:
        return messages_of(json.loads(text))
    except ValueError:
        return None
