"""Conversations as texts: the form in which scorers, reward functions and people see a prompt of several turns.

GROUPS has one text per prompt. The text of a single user turn is its content; the text of any other conversation is the
JSON of its messages, from which `turns_of` restores the turns. `rendered` is the only way into a chat template.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, TypedDict

from brain_align.common.errors import first_line

USER = "user"
ASSISTANT = "assistant"
_SYSTEM = ("system", "developer")
_ASSISTANTS = (ASSISTANT, "model", "gpt", "bot", "chatbot", "ai")  # as data sets and templates call it
_ROLES = (USER, ASSISTANT, "tool", *_SYSTEM)  # those that chat templates know; others must stand in the template
_SOME_DAY = datetime(2024, 7, 26)  # which templates of Llama 3 fall back on where they are not told the date
_SHORT = 24  # characters: a shorter text may be found in the template's own words
_PROBE = "zq7vx0kj3w"
_THOUGHT = "</think>"  # templates drop what an assistant thought
_SWITCH = re.compile(r"/(no_)?think\b")  # and what switches that on and off


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


class MessagesError(Exception):
    """A value is not a list of messages with texts; the message says what it is instead."""


def messages_of(value: Any) -> list[Message]:
    """Return a value from a file as messages; parts of a content, all of type text, are joined.

    Raises:
        MessagesError: it is something else.
    """
    if not isinstance(value, list):
        raise MessagesError(f"it is {described(value)}")
    if not value:
        raise MessagesError("it is an empty list")
    return [_message(turn, place) for place, turn in enumerate(value, start=1)]


def described(value: Any) -> str:
    """Return what a value from a file is, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"the {'truth value' if isinstance(value, bool) else 'number'} {value}"
    kinds: dict[type, str] = {str: "a text", list: "a list", dict: "an object", bytes: "binary data"}
    return kinds.get(type(value), f"of type {type(value).__name__}")


def reply_to(prompt: Sequence[Message], messages: Sequence[Message]) -> str | None:
    """Return the assistant's reply, given alone or as the end of the whole conversation, which begins with the prompt.

    Returns:
        The text, without what the prompt has of it; None where anything but one assistant turn follows the prompt.
    """
    begun = ""
    if prompt[-1]["role"] == ASSISTANT:
        begun, prompt = prompt[-1]["content"], prompt[:-1]
    start = len(prompt) if list(messages[: len(prompt)]) == list(prompt) else 0
    rest = messages[start:]
    return rest[0]["content"].removeprefix(begun) if len(rest) == 1 and rest[0]["role"] == ASSISTANT else None


def answered(prompt: Sequence[Message], output: str) -> list[Message]:
    """Return a conversation with the policy's output: as the assistant's turn, or as the rest of one that has begun."""
    if prompt and prompt[-1]["role"] == ASSISTANT:
        return [*prompt[:-1], Message(role=ASSISTANT, content=prompt[-1]["content"] + output)]
    return [*prompt, Message(role=ASSISTANT, content=output)]


def _message(turn: Any, place: int) -> Message:
    if not isinstance(turn, dict):
        raise MessagesError(f"message {place} is {described(turn)}, not an object with role and content")
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str):
        raise MessagesError(f"message {place} has no role and content (its keys: {', '.join(turn)})")
    if calls := next((name for name in ("tool_calls", "function_call") if turn.get(name)), None):
        raise MessagesError(f"message {place} has {calls}, which are not supported")
    if isinstance(content, list):
        content = "".join(_part(part, place) for part in content)
    if not isinstance(content, str):
        raise MessagesError(f"the content of message {place} is {described(content)}, not a text")
    return Message(role=role, content=content)


def _part(part: Any, place: int) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
    if not isinstance(text, str):
        what = f"of type {part['type']!r}" if isinstance(part, dict) and "type" in part else described(text)
        raise MessagesError(f"message {place} has a part {what}; only text is supported")
    return text


class RenderingError(Exception):
    """A conversation cannot be put into a chat template; the message, about "it", says why."""


class ChatTokenizer(Protocol):
    """The part of transformers' tokenizers that renders conversations."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, chat_template: Any = None, **settings: Any) -> Any:
        """Render a conversation."""


Then = Literal["reply", "continue", "end"]
"""The continuation of a rendered conversation: the assistant's reply; that, or the rest of its turn; nothing."""


def rendered(
    tokenizer: ChatTokenizer,
    turns: Sequence[Message],
    template: str | None = None,
    *,
    then: Then,
    clock: Callable[[str], str] | None = None,
) -> str:
    """Return a conversation in a chat template, checked to hold what the last user, and whoever came last, said.

    Args:
        tokenizer: it renders.
        turns: of the conversation.
        template: default: the tokenizer's own.
        then: what follows; before a reply, a conversation that ends with the assistant's turn is refused.
        clock: formats the time for templates that write the date (`strftime_now`); default: always the same day, so
            that a scorer's values do not depend on the day.

    Raises:
        RenderingError: the template fails, loses what was said, or does not know a role.
    """
    _check_roles(turns, str(template or tokenizer.chat_template), then)
    if then == "continue" and turns[1:] and turns[-1]["role"] in _ASSISTANTS and not turns[-1]["content"].strip():
        turns, then = turns[:-1], "reply"  # nothing of the reply is there yet; templates would trim their own opening
    more = then == "continue" and turns[-1]["role"] in _ASSISTANTS
    settings = {
        "chat_template": template,
        "tokenize": False,
        "add_generation_prompt": then != "end" and not more,
        "continue_final_message": more,
        "strftime_now": clock or _SOME_DAY.strftime,
    }

    def render(turns: Sequence[Message]) -> str:
        try:
            return str(tokenizer.apply_chat_template(list(turns), **settings))
        except Exception as error:  # noqa: BLE001  a template is a program: it may raise anything
            kind = "" if type(error).__name__ == "TemplateError" else f"{type(error).__name__}: "
            raise RenderingError(f"the chat template rejects it: {kind}{first_line(error)}".rstrip(": ")) from None

    text = render(turns)
    users = [place for place, turn in enumerate(turns) if turn["role"] == USER]
    for place in {*users[-1:], len(turns) - 1}:
        if not _is_in(turns[place], text) or not _reacts(render, turns, place):
            raise RenderingError(
                f"the chat template leaves out what the {turns[place]['role']} said in message {place + 1}: it must "
                f"write message['content'] as a text"
            )
    return text


def lost_turns(turns: Sequence[Message], rendering: str) -> list[str]:
    """Return the roles of the turns that a chat template left out of a rendering, such as system turns."""
    return [turn["role"] for turn in turns if not _is_in(turn, rendering)]


def _check_roles(turns: Sequence[Message], template: str, then: Then) -> None:
    for place, turn in enumerate(turns, start=1):
        role = turn["role"]
        if role not in _ROLES and f"'{role}'" not in template and f'"{role}"' not in template:
            raise RenderingError(
                f"message {place} has the role {role!r}, which the chat template does not name: use user, assistant, "
                f"system or tool"
            )
    if not turns:
        raise RenderingError("it has no messages")
    if then == "reply" and turns[-1]["role"] in _ASSISTANTS:
        raise RenderingError(
            "it ends with the assistant's turn: remove that turn, or set data.continue_final_message=true to have the "
            "model continue it"
        )


def _reacts(render: Callable[[Sequence[Message]], str], turns: Sequence[Message], place: int) -> bool:
    """Return whether another text in place of a short one is found in the rendering, too."""
    if len(turns[place]["content"]) > _SHORT or not turns[place]["content"].strip():
        return True
    other = [*turns[:place], Message(role=turns[place]["role"], content=_PROBE), *turns[place + 1 :]]
    try:
        return _PROBE in _squeezed(render(other))
    except RenderingError:  # the template wants this very text
        return True


def _is_in(turn: Message, rendering: str) -> bool:
    """Return whether a turn's text is in a rendering, as it is or as JSON, in other white space or letters' case."""
    if turn["content"].strip() in rendering:
        return True
    squeezed = _squeezed(rendering)
    return any(_squeezed(form) in squeezed for form in _forms(turn))


def _forms(turn: Message) -> Iterator[str]:
    text = turn["content"]
    yield text
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    if _SWITCH.search(text):
        yield _SWITCH.sub("", text)
    if turn["role"] in _ASSISTANTS and _THOUGHT in text:
        yield text.rpartition(_THOUGHT)[2]


def _squeezed(text: str) -> str:
    """Return a text without what templates change: white space and letters' case."""
    return "".join(text.split()).casefold()


def _parsed(text: str) -> list[Message] | None:
    if not text.startswith('[{"'):
        return None
    try:
        return messages_of(json.loads(text))
    except (ValueError, RecursionError, MessagesError):
        return None
