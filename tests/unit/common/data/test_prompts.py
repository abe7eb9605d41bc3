from collections.abc import Sequence
from typing import Any

import pytest

from brain_align.common.data.conversations import Message, as_text, is_conversation, turns_of
from brain_align.common.data.prompt_set import PromptSet
from brain_align.common.data.prompts import PromptColumns, PromptOrder, RefusedPromptError, load_prompts
from brain_align.common.errors import UserError
from brain_align.common.requests import Prompt

ROWS = [
    {"prompt": "one two", "label": "gold"},
    {"prompt": "", "label": "x"},
    {"prompt": "a b c d", "label": "y"},
    {"prompt": None, "label": "z"},
    {"prompt": "one two", "label": "gold"},
]
COLUMNS = PromptColumns("prompt", "label")
CHAT = PromptColumns("prompt", "label", conversations=True)
USER, ANSWER = Message(role="user", content="Hi"), Message(role="assistant", content="Hello")
SYSTEM, AGAIN = Message(role="system", content="Be kind."), Message(role="user", content="Why?")


def encode(texts: Sequence[str]) -> list[list[int]]:
    return [[len(word) for word in text.split()] for text in texts]


def load(rows: list[Any], columns: PromptColumns = COLUMNS, max_tokens: int = 3) -> PromptSet:
    return load_prompts(rows, columns, encode, max_tokens, "here")


def test_what_does_not_fit_is_counted_with_its_first_row() -> None:
    found = load(ROWS)
    assert [(prompt.text, prompt.token_ids, prompt.gold_text) for prompt in found] == [("one two", (3, 3), "gold")] * 2
    assert (str(found.too_long), str(found.empty)) == ("1 (first: row 3)", "2 (first: row 2)")


def test_each_row_is_a_prompt_of_its_own_and_keeps_its_name() -> None:
    first, second = load(ROWS)
    assert first.prompt_id != second.prompt_id
    assert [prompt.prompt_id for prompt in load(ROWS)] == [first.prompt_id, second.prompt_id]
    assert list(load(ROWS).identities()) == [(first.prompt_id, "gold"), (second.prompt_id, "gold")]


def test_many_prompts_are_found_by_their_place_and_take_what_their_text_takes() -> None:
    rows = [{"prompt": f"prompt {number} " + "word " * (number % 50), "label": str(number)} for number in range(5000)]
    found = load(rows, max_tokens=100)
    assert len(found) == 5000
    for place in (0, 1023, 1024, 2047, 2048, 4999):
        prompt = found[place]
        assert isinstance(prompt, Prompt)
        assert (prompt.text, prompt.gold_text) == (rows[place]["prompt"], str(place))
        assert list(prompt.token_ids) == encode([prompt.text])[0]
    assert [prompt.gold_text for prompt in found[1022:1026]] == ["1022", "1023", "1024", "1025"]
    content = sum(len(row["prompt"]) + len(row["label"]) + 4 * len(row["prompt"].split()) for row in rows)
    assert found.nbytes < content + 32 * len(rows)
    with pytest.raises(IndexError):
        found[5000]


def test_nothing_usable_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"here .* 2 \(first: row 2\) are empty and 3 \(first: row 1\) are longer than 1"
    ):
        load(ROWS, max_tokens=1)
    with pytest.raises(UserError, match="no usable prompt"):
        load([])


def test_rows_that_hold_something_else_are_named() -> None:
    with pytest.raises(UserError, match=r"here, row 1, has no text in column 'text' \(its columns: prompt, label\)"):
        load(ROWS, PromptColumns("text", None))
    with pytest.raises(UserError, match=r"row 1, has a list of messages in column 'prompt'; set data\.chat_template"):
        load([{"prompt": [USER], "label": "a"}])


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (3, "it is the number 3; it must be a text"),
        (True, "it is the truth value True"),
        ({"a": 1}, "it is an object"),
        (b"x", "it is binary data"),
        ([], "it is an empty list"),
        (["Hi"], "message 1 is a text, not an object with role and content"),
        ([{"from": "human", "value": "Hi"}], r"message 1 has no role and content \(its keys: from, value\)"),
        ([USER, {"role": "assistant", "content": None}], "the content of message 2 is null, not a text"),
        ([{"role": "user"}], "the content of message 1 is null"),
        ([{"role": "user", "content": 3}], "the content of message 1 is the number 3"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{}]}], "message 2 has tool_calls, which are not"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 has a part of type 'image'; only text is"),
        ([{"role": "user", "content": [3]}], "message 1 has a part the number 3"),
    ],
)
def test_what_a_value_is_instead_of_a_text_is_said(value: Any, what: str) -> None:
    for column, row in (("prompt", {"prompt": value, "label": "a"}), ("label", {"prompt": "a", "label": value})):
        with pytest.raises(UserError, match=rf"^here, row 1, has no text in column '{column}': {what}"):
            load([row], CHAT)


def test_parts_of_a_content_that_are_texts_are_joined() -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i", "image": None}]
    row = {"prompt": [{"role": "user", "content": parts, "tool_calls": None}], "label": [ANSWER]}
    (found,) = load([row], CHAT)
    assert (found.text, found.gold_text) == ("Hi", "Hello")


def test_rows_without_a_reference_output_are_skipped_and_counted() -> None:
    rows = [{"prompt": "a", "label": "x"}, {"prompt": "b", "label": None}, {"prompt": None, "label": None}]
    found = load(rows)
    assert [prompt.text for prompt in found] == ["a"]
    assert (str(found.without_gold), str(found.empty)) == ("1 (first: row 2)", "1 (first: row 3)")
    with pytest.raises(UserError, match=r"have null in column 'label'; set data\.gold_column=null if"):
        load(rows[1:])


def test_a_reference_output_that_cannot_be_encoded_is_named_by_its_row() -> None:
    def refuse(text: str) -> list[int]:
        if text == "bad":
            raise RefusedPromptError(0, "it has the token '<image>'")
        return [1]

    rows = [{"prompt": "a", "label": "x"}, {"prompt": "b", "label": "bad"}]
    with pytest.raises(UserError, match=r"here, row 2, cannot be encoded \(it has the token '<image>'\)"):
        load_prompts(rows, COLUMNS, encode, 9, "here", refuse)


def test_a_reply_that_the_prompt_begins_is_what_follows() -> None:
    begun = Message(role="assistant", content="Hel")
    for label in ([USER, ANSWER], [ANSWER], "lo"):
        (found,) = load([{"prompt": [USER, begun], "label": label}], CHAT, max_tokens=100)
        assert found.gold_text == "lo"


def test_the_digest_of_token_ids_is_that_of_each_prompt_s_ids() -> None:
    def digest_of(*texts: str) -> str:
        return load([{"prompt": text, "label": "x"} for text in texts], max_tokens=9).token_digest()

    assert digest_of("ab cd", "e") == digest_of("xy zw", "f")  # the ids, not the texts, count
    assert len({digest_of("ab cd", "e"), digest_of("ab", "cd e"), digest_of("a", "b"), digest_of("ab cd e")}) == 4


def test_a_prompt_that_cannot_be_encoded_is_named_by_its_row() -> None:
    def refuse(texts: Sequence[str]) -> list[list[int]]:
        raise RefusedPromptError(list(texts).index("bad"), "the template says: roles must alternate")

    rows = [{"prompt": text} for text in ("a", "", "bad")]
    with pytest.raises(UserError, match=r"here, row 3, cannot be encoded \(the template says: roles must alternate\)"):
        load_prompts(rows, PromptColumns("prompt", None), refuse, 9, "here")


# -- conversations


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([USER], "Hi"),
        ([SYSTEM, USER], '[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]'),
        ([ANSWER], '[{"role": "assistant", "content": "Hello"}]'),
        ([{"role": "user", "content": '[{"role": "user", "content": "ß"}]'}], None),
        ([{"role": "user", "content": '[{"no": "message"}]'}], '[{"no": "message"}]'),
    ],
)
def test_a_conversation_s_text_gives_its_turns_back(messages: Any, text: str | None) -> None:
    written = as_text(messages)
    assert turns_of(written) == messages
    assert text is None or written == text
    assert is_conversation(written) == (written != messages[0]["content"])


def test_conversations_are_read_and_counted_and_their_gold_is_the_reply() -> None:
    whole = [SYSTEM, USER, ANSWER, AGAIN]
    reply = {"role": "assistant", "content": "So."}
    rows = [
        {"prompt": [USER], "label": [ANSWER]},
        {"prompt": whole, "label": [*whole, reply]},
        {"prompt": whole, "label": [reply]},
        {"prompt": "Hi", "label": "Hello"},
    ]
    found = load(rows, CHAT, max_tokens=100)
    assert [prompt.gold_text for prompt in found] == ["Hello", "So.", "So.", "Hello"]
    assert [prompt.text for prompt in found] == ["Hi", as_text(whole), as_text(whole), "Hi"]
    assert found.conversations == 2


@pytest.mark.parametrize("label", [[USER], [ANSWER, ANSWER], [SYSTEM, USER]])
def test_a_gold_conversation_that_is_no_reply_is_refused(label: Any) -> None:
    with pytest.raises(UserError, match="row 1, column 'label': the prompt is not followed by exactly one"):
        load([{"prompt": [USER], "label": label}], CHAT)


# -- order


def test_an_epoch_draws_each_prompt_once_and_the_next_one_in_another_order() -> None:
    order = PromptOrder(12, 4, seed=1)
    epochs = [[order.indices(3 * epoch + slot) for slot in range(3)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(index for round_ in epoch for index in round_) == list(range(12))
    assert epochs[0] != epochs[1] != epochs[2]
    assert PromptOrder(12, 4, seed=1).indices(7) == epochs[2][1]  # a round needs no other to be known
    assert PromptOrder(12, 4, seed=2).indices(7) != epochs[2][1]
    assert len(set(PromptOrder(10, 4, seed=1).indices(5))) == 4  # what no whole round is left of waits


def test_more_prompts_a_round_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="prompts_per_round=5 is more than the 4"):
        PromptOrder(4, 5, 0)


def test_a_text_that_looks_like_messages_is_what_the_user_says() -> None:
    text = '[{"role": "assistant", "content": "Hi"}]'
    (prompt,) = load([{"prompt": text, "label": "x"}], CHAT, max_tokens=100)
    assert turns_of(prompt.text) == [{"role": "user", "content": text}]
    (plain,) = load([{"prompt": text, "label": "x"}], max_tokens=100)
    assert plain.text == text
