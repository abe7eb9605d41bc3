"""A conversation in a chat template: what was said must be in it."""

from collections.abc import Sequence
from typing import Any

import pytest

from brain_align.common.data.conversations import Message, RenderingError, Then, lost_turns, rendered
from tests.unit.tiny_models import gpt2_like_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = (
    "{% for m in messages %}{{ m['role'] | capitalize }}:{% for l in m['content'] %}"
    "{% if l['type'] == 'text' %}{{ l['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}Assistant:"
)
LAST_ONLY = "[INST] {{ messages[-1].content }} [/INST]"
LONG = "Please explain at some length why the cat sat on the mat."
OTHER: list[tuple[Any, str]] = [
    ("{{ messages[0].content + 1 }}", "rejects it: TypeError: can only concatenate str"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "rejects it: RecursionError: maximum recursion depth"),
    ("{{ raise_exception('no system turn') }}", "rejects it: no system turn$"),
    ("{{ messages[7].role.x }}", "rejects it: UndefinedError: "),
    ("{% for %}", "rejects it: TemplateSyntaxError: "),
]


def talk(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in turns]


def render(turns: Sequence[Message], template: str = CHATML, then: Then = "reply", **more: Any) -> str:
    return rendered(gpt2_like_tokenizer(), turns, template, then=then, **more)


def test_what_follows_a_conversation_is_chosen() -> None:
    asked = talk(("system", "Be kind."), ("user", " Hi "))
    start = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(asked) == render(asked, then="continue") == start
    begun = [*asked, Message(role="assistant", content="Hello, ")]
    assert render(begun, then="end") == f"{start}Hello,<|im_end|>\n"
    assert render(begun, then="continue") == f"{start}Hello,"
    for blank in ("", " \n"):
        assert render([*asked, Message(role="assistant", content=blank)], then="continue") == start


@pytest.mark.parametrize("role", ["assistant", "model", "gpt"])
def test_a_conversation_that_the_assistant_has_ended_gets_no_reply(role: str) -> None:
    named = CHATML + "{# 'model' 'gpt' #}"
    with pytest.raises(RenderingError, match=r"ends with the assistant's turn: .* data\.continue_final_message=true"):
        render(talk(("user", "Hi"), (role, "Hello")), named)


@pytest.mark.parametrize("text", ["Hi", "user", LONG])
@pytest.mark.parametrize(
    "template", [PARTS, "User: Hi\nAssistant:", "{{ messages[0].content[:1] }}{{ messages[0].role }}"]
)
def test_a_template_that_drops_what_the_user_said_is_refused(template: str, text: str) -> None:
    with pytest.raises(RenderingError, match=r"leaves out what the user said in message 1: .* message\['content'\]"):
        render(talk(("user", text)), template)


def test_the_last_user_s_turn_counts_and_that_of_whoever_came_last() -> None:
    first = "{{ messages[0].content }}"
    for last in ("user", "tool", "system"):
        with pytest.raises(RenderingError, match=rf"what the {last} said in message 2"):
            render(talk(("user", LONG), (last, "And the dog?")), first)
    with pytest.raises(RenderingError, match="what the assistant said in message 2"):
        render(talk(("user", LONG), ("assistant", "It was warm there, and soft.")), first, then="end")
    assert "dog" in render(talk(("user", LONG), ("user", "And the dog?")), LAST_ONLY)


@pytest.mark.parametrize(
    "template",
    [f"{{{{ messages[0].content | {change} }}}}" for change in ("upper", "tojson", "replace('\\n', ' ') | trim")],
)
def test_white_space_case_and_escapes_are_the_template_s_affair(template: str) -> None:
    for text in (' say "ß < 日本 & more"\n\n to everybody who wants to hear it ', "Hi", " \n"):
        assert render(talk(("user", text)), template).strip() or not text.strip()


def test_thoughts_that_a_template_drops_are_no_loss() -> None:
    template = "{{ messages[-1].content.split('</think>')[-1] }}{{ messages[0].content }}"
    turns = talk(("user", LONG), ("assistant", "<think>It is a cat, after all.</think>\n\nBecause it was warm there."))
    assert render(turns, template, then="end").strip().startswith("Because")


def test_switches_that_a_template_obeys_and_drops_are_no_loss() -> None:
    template = "{{ messages[0].content.replace('/no_think', '').replace('/think', '') }}"
    for text in (f"{LONG} /no_think", f"/think {LONG}", f"why /no_think {LONG}", "/no_think"):
        render(talk(("user", text)), template)
    with pytest.raises(RenderingError, match="leaves out"):
        render(talk(("user", f"{LONG} /no_think")), "{{ messages[0].content[:9] }}")


def test_roles_that_the_template_does_not_know_are_refused() -> None:
    for role in ("human", "User", ""):
        with pytest.raises(RenderingError, match=rf"message 1 has the role '{role}', .* use user, assistant"):
            render(talk((role, LONG)))
    assert LONG in render(
        talk(("human", LONG)), "{% if messages[0].role == 'human' %}{{ messages[0].content }}{% endif %}"
    )
    assert LONG in render(talk(("developer", "Be kind."), ("user", LONG)))
    with pytest.raises(RenderingError, match="no messages"):
        render([])


@pytest.mark.parametrize(("template", "reason"), OTHER)
def test_whatever_a_template_raises_is_a_reason(template: str, reason: str) -> None:
    with pytest.raises(RenderingError, match=reason) as refused:
        render(talk(("user", LONG)), template)
    assert "\n" not in str(refused.value)


def test_turns_that_a_template_leaves_out_are_named() -> None:
    turns = talk(("system", "Be kind to all who ask."), ("user", LONG))
    assert lost_turns(turns, render(turns, LAST_ONLY)) == ["system"]
    assert lost_turns(turns, render(turns)) == []


def test_the_date_is_that_of_the_clock() -> None:
    template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"
    assert render(talk(("user", "Hi")), template, clock=lambda how: f"<{how}>") == "<%d %b %Y>: Hi"
    assert render(talk(("user", "Hi")), template) == "26 Jul 2024: Hi"  # a scorer's values do not depend on the day
