"""Conversations as texts: the form in which scorers, reward functions and people see a prompt of several turns.

GROUPS has one text per prompt. The text of a single user turn is its content; the text of any other conversation is the
JSON of its messages, from which `turns_of` restores the turns.
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
    """Return the text of a conversation; `turns_of` is the inverse."""
    if len(messages) == 1 and messages[0]["role"] == USER and _parsed(messages[0]["content"]) is None:
        return messages[0]["content"]
    return json.dumps(list(messages), ensure_ascii=False)


def turns_of(text: str) -> list[Message]:
    """Return the turns of a prompt's text; a text that is not a conversation is a single user turn."""
    return _parsed(text) or [Message(role=USER, content=text)]


def is_conversation(text: str) -> bool:
    """Return whether a prompt's text is a conversation other than a single user turn."""
    return _parsed(text) is not None


def messages_of(value: Any) -> list[Message] | None:
    """Return a value from a file as messages; None where it is not a list of `{"role", "content"}` texts."""
    if not isinstance(value, list) or not value:
        return None
    for turn in value:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            return None
    return [Message(role=turn["role"], content=turn["content"]) for turn in value]


def reply_to(prompt: Sequence[Message], messages: Sequence[Message]) -> str | None:
    """Return the assistant's reply, given alone or as the end of the whole conversation, which begins with the prompt.

    Returns:
        The text; None where anything but one assistant turn follows the prompt.
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
