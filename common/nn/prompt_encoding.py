"""Encoding of texts to the policy's token ids.

A prompt is encoded as it is, or as a conversation in a chat template; a completion given as text as if it was sampled.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from brain_align.common.config.inputs import AS_THEY_ARE, OF_THE_MODEL, DataSection, PolicySection
from brain_align.common.data.conversations import (
    Message,
    RenderingError,
    Then,
    lost_turns,
    rendered,
    turns_of,
)
from brain_align.common.data.prompts import RefusedPromptError
from brain_align.common.errors import UserError
from brain_align.common.identity import digest
from brain_align.common.nn.completion_frame import Frame, frame_of_template, listed_tokens
from brain_align.common.nn.models.causal_lm import check_tokenizer, load_tokenizer
from brain_align.common.nn.models.configuration import load_config
from brain_align.common.nn.models.end_tokens import end_tokens, model_end_tokens
from brain_align.common.nn.token_ids import LiteralContents, continuation_ids, token_ids, tokens_around


def policy_encoding(policy: PolicySection, data: DataSection, moment: datetime | None = None) -> "TextEncoding":
    """Load the policy's tokenizer, check that it fits the model, and return the encoding of the recipe's texts.

    A template that writes the date is given that of `moment`; default: now.

    Raises:
        UserError: the tokenizer or the template is missing, or the tokenizer is another model's.
    """
    source = policy.tokenizer or policy.model
    tokenizer = load_tokenizer(source)
    config = load_config(policy.model)
    notes = check_tokenizer(tokenizer, config, source)
    ends = end_tokens(policy.model, tokenizer)
    if ends[1:] and tokenizer.eos_token_id not in model_end_tokens(policy.model):
        notes.append(
            f"note: the tokenizer in {source} ends texts with another token than the model's files name; outputs end "
            f"with any of {listed_tokens(tokenizer, ends)}"
        )
    return TextEncoding(
        tokenizer,
        template_text(tokenizer, data.chat_template),
        ends=ends,
        rows=config.get_text_config().vocab_size,
        continues=data.continue_final_message,
        clock=Clock(moment or datetime.now()),
        noted=notes,
    )


def template_text(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> str | None:
    """Return the text of the recipe's `data.chat_template`; None where prompts are plain texts.

    Raises:
        UserError: there is no such template.
    """
    if chat_template == AS_THEY_ARE:
        return None
    if chat_template != OF_THE_MODEL:
        return _read_template(chat_template)
    if not tokenizer.chat_template:
        raise UserError(
            "data.chat_template=model, but the policy's tokenizer has no chat template; set it to the file of one, or "
            "to none."
        )
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # several, and none of them is the default
        raise UserError(
            f"data.chat_template=model, but the policy's tokenizer has several chat templates and no default "
            f"({', '.join(tokenizer.chat_template)}); set it to the file of one."
        ) from error


@dataclass
class Clock:
    """Formats one moment for templates that write the date."""

    moment: datetime
    was_asked: bool = False

    def __call__(self, how: str) -> str:
        """Return the moment in the form that `strftime` gives it."""
        self.was_asked = True
        return self.moment.strftime(how)


@dataclass
class TextEncoding:
    """Encodes prompts and completions, and remembers what the user should know of them."""

    tokenizer: PreTrainedTokenizerBase
    template: str | None  # None: prompts are texts as they are
    ends: Sequence[int]  # the ids that end an output
    rows: int  # of the model's embedding: ids are below it
    continues: bool = False  # whether a conversation that ends with the assistant's turn is continued
    clock: Clock = field(default_factory=lambda: Clock(datetime.now()))
    noted: list[str] = field(default_factory=list)
    _lost: Counter[str] = field(default_factory=Counter)  # turns that the template left out, by role
    _literal: int = 0  # prompts that spell control tokens
    _plain: int = 0  # prompts encoded as plain texts
    _control: bool = False  # whether one of these has control tokens, as texts that were rendered beforehand do

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of prompts; raise a RefusedPromptError for one that cannot be encoded."""
        encode = self._plain_texts if self.template is None else self._conversations
        found = encode(texts)
        for index, row in enumerate(found):
            self._require_rows(index, row)
        return found

    def completion(self, text: str) -> list[int]:
        """Return the token ids of a completion given as text: without BOS, ended as the template or the tokenizer does.

        A completion whose text brings its end does not get another. Raises a RefusedPromptError for a text with a token
        that the model does not know.
        """
        frame, literal = self._frame, self.template is not None
        ids = continuation_ids(self.tokenizer, frame.text(text), literal=literal)
        if not self.continues:  # else the prompt may have the beginning of the turn
            ids = [*frame.opening, *ids]
        self._require_rows(0, ids)
        return ids if ids and ids[-1] in self.ends else [*ids, *frame.end]

    @property
    def knows_all_tokens(self) -> bool:
        """Return whether the model has a row for each token of the tokenizer."""
        return max(self.tokenizer.get_vocab().values()) < self.rows

    def digest(self) -> str:
        """Return the digest of all that decides token ids besides texts: for completions, and for reading outputs."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        return digest(vocabulary, list(self.ends), self._frame.opening, self._frame.space, self._frame.end)

    def notes(self) -> list[str]:
        """Return what the user should know of the texts encoded so far."""
        found = list(self.noted)
        if self.clock.was_asked:
            found.append(
                f"note: the chat template writes the date or time; the run keeps {self.clock.moment:%d %b %Y %H:%M}, "
                f"also when it is resumed"
            )
        found += [f"note: the chat template leaves out {count} {role} turns" for role, count in self._lost.items()]
        if self._literal:
            found.append(f"note: {self._literal} prompts spell control tokens of the tokenizer, which are read as text")
        if self._plain and not self._control and self.tokenizer.chat_template:
            found.append(
                "note: the tokenizer has a chat template, but data.chat_template=none gives the model the prompts as "
                "plain texts; set data.chat_template=model if it is a chat model"
            )
        return found + self._frame.notes

    def _require_rows(self, index: int, ids: Sequence[int]) -> None:
        if ids and (largest := max(ids)) >= self.rows:
            raise RefusedPromptError(
                index,
                f"it has the token {self.tokenizer.convert_ids_to_tokens(largest)!r} (id {largest}), but the model has "
                f"{self.rows} tokens",
            )

    def _plain_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts as they are, after the tokens that the tokenizer puts before every text (BOS).

        A text that already begins with those tokens (`<s>`, say) does not get them twice. Tokens that a tokenizer
        appends to a text, such as EOS, are left out: they would end the prompt before its output begins.
        """
        before = self._put_before_texts
        rows = token_ids(self.tokenizer, texts)
        control = set(self.tokenizer.all_special_ids) - set(before)
        self._plain += len(rows)
        self._control = self._control or not control.isdisjoint(chain.from_iterable(rows))
        return [row if row[: len(before)] == before else before + row for row in rows]

    def _conversations(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode conversations in the template, up to the beginning of the assistant's turn.

        The template writes all control tokens itself; the tokenizer adds none.
        """
        conversations = [turns_of(text) for text in texts]
        renderings = [self._rendered(index, turns) for index, turns in enumerate(conversations)]
        rows = token_ids(self.tokenizer, renderings)
        for index, turns in enumerate(conversations):
            self._lost.update(lost_turns(turns, renderings[index]))
            contents = [turn["content"] for turn in turns]
            if self._literals.spelt_in(contents):
                self._literal += 1
                rows[index] = self._literals.encode(partial(self._changed, index, turns), contents)
        return rows

    def _changed(self, index: int, turns: Sequence[Message], change: Callable[[str], str]) -> str:
        return self._rendered(index, [Message(role=turn["role"], content=change(turn["content"])) for turn in turns])

    def _rendered(self, index: int, turns: Sequence[Message]) -> str:
        try:
            return self._render(turns, "continue" if self.continues else "reply")
        except RenderingError as error:
            raise RefusedPromptError(index, str(error)) from None

    def _render(self, turns: Sequence[Message], then: Then) -> str:
        return rendered(self.tokenizer, turns, self.template, then=then, clock=self.clock)

    @cached_property
    def _literals(self) -> LiteralContents:
        return LiteralContents(self.tokenizer)

    @cached_property
    def _put_before_texts(self) -> list[int]:
        """The tokens that the tokenizer puts before every text."""
        return tokens_around(self.tokenizer)[0]

    @cached_property
    def _frame(self) -> "Frame":
        """Return what stands around a completion's text."""
        if self.template is None:
            return Frame([self.tokenizer.eos_token_id])
        return frame_of_template(self.tokenizer, self.ends, self._render)


def _read_template(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template={file} cannot be read as a template file ({error}); give a file's path, or set model "
            f"or none."
        ) from None
