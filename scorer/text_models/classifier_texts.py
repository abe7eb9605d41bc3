"""Encodes a prompt with an output as a sequence classifier reads it: for scoring, and for training one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from transformers import PreTrainedTokenizerBase

from brain_align.common.data.conversations import Message, answered, rendered, turns_of
from brain_align.common.nn.token_ids import LiteralContents, tokens_around


@dataclass
class ClassifierTexts:
    """The token ids of texts, at most `limit` of them, with or without the tokenizer's chat template."""

    tokenizer: PreTrainedTokenizerBase
    chat_template: bool
    truncation: Literal["left", "right"]  # the side that is cut off; the tokenizer's own is set to it
    limit: int  # tokens of a text
    padding: int | None  # the id that a causal classifier skips at the end of a text; None: it skips nothing

    def encode(self, prompt: str, output: str) -> list[int]:
        """Return the ids of a prompt's text (`conversations.as_text`) with an output.

        Raises:
            RenderingError: the chat template cannot take the conversation.
        """
        ids = self._conversation(prompt, output) if self.chat_template else self._plain(prompt, output)
        while len(ids) > 1 and ids[-1] == self.padding:
            ids.pop()
        return ids

    def _plain(self, prompt: str, output: str) -> list[int]:
        """Encode prompt and output as one text; control tokens that the output spells are read as text."""
        begun = self._contents.begun(prompt, output)
        prompt, said = prompt[: len(prompt) - begun], prompt[len(prompt) - begun :] + output
        if not self._contents.spelt_in([said]):
            return list(self.tokenizer(prompt + said, truncation=True, max_length=self.limit)["input_ids"])
        ids = self._contents.encode(lambda change: prompt + change(said), [said])
        before, after = self._around
        room = self.limit - len(before) - len(after)
        return [*before, *(ids[-room:] if self.truncation == "left" else ids[:room]), *after]

    def _conversation(self, prompt: str, output: str) -> list[int]:
        """Encode prompt and output in the classifier's template, which brings all control tokens."""
        turns = answered(turns_of(prompt), output)

        def render(change: Callable[[str], str]) -> str:
            changed = [Message(role=turn["role"], content=change(turn["content"])) for turn in turns]
            return rendered(self.tokenizer, changed, then="end")

        ids = self._contents.encode(render, [turn["content"] for turn in turns])
        return ids[-self.limit :] if self.truncation == "left" else ids[: self.limit]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before and after every text."""
        return tokens_around(self.tokenizer)

    @cached_property
    def _contents(self) -> LiteralContents:
        return LiteralContents(self.tokenizer)
