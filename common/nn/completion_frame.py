"""What stands around the assistant's text in a conversation: in its chat template, or by the tokenizer alone."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from brain_align.common.data.conversations import ASSISTANT, USER, Message, RenderingError, Then
from brain_align.common.nn.token_ids import continuation_ids, control_tokens

_SYSTEM = "system"
_REPLY = "REPLY"
_MARGIN = "\t"  # white space that templates do not write, but some remove

Render = Callable[[Sequence[Message], Then], str]


@dataclass(frozen=True)
class Frame:
    """The tokens and spaces around a completion's text; without a template, only the end of text follows."""

    end: list[int]
    opening: list[int] = field(default_factory=list)  # of the turn, behind what the prompt has of it
    space: str = ""  # before the text
    trims_start: bool = False
    trims_end: bool = False
    notes: list[str] = field(default_factory=list)

    def text(self, text: str) -> str:
        """Return a text as it stands in the template."""
        text = text.lstrip() if self.trims_start else text
        return self.space + (text.rstrip() if self.trims_end else text)


def frame_of_template(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], render: Render) -> Frame:
    """Return what a chat template writes around the assistant's text, up to the first token that ends outputs.

    `render` renders a conversation and raises a RenderingError.
    """
    question = Message(role=USER, content=_REPLY.lower())
    for asked in ([question], [Message(role=_SYSTEM, content=_REPLY.lower()), question]):
        answer = Message(role=ASSISTANT, content=_MARGIN + _REPLY + _MARGIN)
        with suppress(RenderingError):  # the template wants another conversation
            return _between(tokenizer, ends, render(asked, "reply"), render([*asked, answer], "end"))
    return Frame([tokenizer.eos_token_id])


def listed_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return tokens with their ids, for messages."""
    return " and ".join(f"{token} {tokenizer.convert_ids_to_tokens(token)!r}" for token in ids)


def _between(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], prompt: str, whole: str) -> Frame:
    before, _, after = whole.rpartition(_REPLY)
    trims = not before.endswith(_MARGIN), not after.startswith(_MARGIN)
    before, after = before.removesuffix(_MARGIN), after.removeprefix(_MARGIN)
    between = before[len(prompt) :] if before.startswith(prompt) else ""
    opening = continuation_ids(tokenizer, between)
    if not tokenizer.added_tokens_decoder.keys() & set(opening):
        opening = []  # words: only tokens of the format (an empty block of thoughts) belong to every answer
    end, notes = _end(tokenizer, ends, after)
    return Frame(end, opening, between if between.isspace() else "", *trims, notes)


def _end(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], after: str) -> tuple[list[int], list[str]]:
    ids = continuation_ids(tokenizer, after)
    controls = set(tokenizer.convert_tokens_to_ids(control_tokens(tokenizer)))
    for closing in (set(ends), controls):
        place = next((place for place, token in enumerate(ids) if token in closing), None)
        if place is None:
            continue
        if closing is not controls or ids[place] in ends:
            return ids[: place + 1], []
        token = tokenizer.convert_ids_to_tokens(ids[place])
        return ids[: place + 1], [
            f"note: the chat template ends the assistant's turn with {token!r}, which does not end outputs: the files "
            f"of the model name {listed_tokens(tokenizer, ends)}; add it to eos_token_id in generation_config.json"
        ]
    return [tokenizer.eos_token_id], []  # only words follow, behind which models are trained to end the text
