"""The text formats of the two GPT-J reward models: the encoded text, and the token at which the reward is read.

These formats are fixed by the published checkpoints. A reward read one token off, or a text truncated on the wrong
side, is a plausible number that means nothing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from brain_align.common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EOS = "<|endoftext|>"
"""End of text and padding in both formats."""

START = "<|startoftext|>"
"""The beginning of TL;DR texts: several ordinary BPE pieces, never one special token."""

_TLDR_MARKER = "TL;DR:"


@dataclass(frozen=True)
class EncodedText:
    """A text as a reward model reads it."""

    token_ids: list[int]  # of the whole text, truncated
    read_index: int  # index of the token whose value is the text's reward

    @property
    def read(self) -> list[int]:
        """The tokens that the reward depends on: attention is causal, so later tokens have no effect."""
        return self.token_ids[: self.read_index + 1]


@dataclass(frozen=True)
class RewardFormat:
    """The text format of one family of reward models."""

    name: str  # in recipes
    checkpoint_file: str  # holds the weights
    tokenizer: str  # hub id of the tokenizer if there is none beside the checkpoint
    max_tokens: int  # longer texts are truncated to this many tokens
    truncation_side: Literal["left", "right"]  # the side that loses tokens
    # before_eos: the token before the first EOS, or the last one where truncation cut EOS off; at_eos: the first EOS
    # itself, which truncation from the left always keeps.
    reads: Literal["before_eos", "at_eos"]
    prefix: str = ""  # before every prompt
    may_hold_copies: bool = False  # the file may hold the weights a second time, under `model.`
    gold_marker: str | None = None  # gold texts follow the prompt's last marker and exactly one space

    def text(self, prompt: str, output: str) -> str:
        """Return the text that is scored for an output; an empty output is scored like any other.

        EOS inside the text is removed: the reward is read at the first EOS, so one inside the prompt would give all
        outputs the same reward.
        """
        return self.prefix + _without_eos(prompt + output) + EOS

    def gold_text(self, prompt: str, gold: str) -> str:
        """Return the text that is scored for a gold output, in the form that the reward model was trained on.

        Some data sets begin their gold texts with a space and some do not: a second space would be a handicap that no
        generated text has.
        """
        if self.gold_marker is None:
            return self.text(prompt, gold)
        head, marker, _ = prompt.rpartition(self.gold_marker)
        return self.text(f"{head if marker else prompt}{self.gold_marker} ", gold.lstrip(" "))

    def encode(
        self, tokenizer: "PreTrainedTokenizerBase", texts: list[str], max_positions: int | None = None
    ) -> list[EncodedText]:
        """Encode texts made by `text` or `gold_text`: at least one text, each with at least one token.

        The tokenizer is the reward model's own; the context length `max_positions` bounds `max_tokens`.
        """
        limit = min(self.max_tokens, max_positions or self.max_tokens)
        # The tokenizer's own settings (truncation, padding, BOS) are not used.
        rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        truncated = [row[:limit] if self.truncation_side == "right" else row[-limit:] for row in rows]
        return [self._read(row, tokenizer.eos_token_id) for row in truncated]

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase", where: str) -> None:
        """Refuse a tokenizer that would silently encode this format's texts differently.

        Raises:
            UserError: its EOS is another one or not a single token, or `<|startoftext|>` is one token.
        """
        ids = tokenizer(EOS, add_special_tokens=False)["input_ids"]
        if tokenizer.eos_token != EOS or list(ids) != [tokenizer.eos_token_id]:
            raise UserError(
                f"The tokenizer in {where} does not fit a {self.name} reward model: its end of text is "
                f"{tokenizer.eos_token!r}, but must be the single token {EOS!r}."
            )
        if self.prefix and len(tokenizer(self.prefix, add_special_tokens=False)["input_ids"]) == 1:
            raise UserError(
                f"The tokenizer in {where} has {self.prefix!r} as one token; {self.name} reward models were "
                f"trained with it as ordinary pieces: remove it from the tokenizer's added tokens."
            )

    def _read(self, ids: list[int], eos_id: int) -> EncodedText:
        # Without an EOS, the last token is "the one before EOS": truncation cut EOS off.
        first_eos = ids.index(eos_id) if eos_id in ids else len(ids)
        return EncodedText(ids, first_eos - 1 if self.reads == "before_eos" else first_eos)


TLDR = RewardFormat(
    name="tldr",
    checkpoint_file="pytorch_model.bin",
    tokenizer="EleutherAI/gpt-j-6B",
    max_tokens=550,
    truncation_side="right",
    reads="before_eos",
    prefix=START,
    gold_marker=_TLDR_MARKER,
)
"""`CarperAI/openai_summarize_tldr_rm_checkpoint`."""

HH = RewardFormat(
    name="hh",
    checkpoint_file="hf_ckpt.pt",
    tokenizer="gpt2",
    max_tokens=1024,
    truncation_side="left",
    reads="at_eos",
    may_hold_copies=True,
)
"""`Dahoas/gptj-rm-static`."""

FORMATS = {"tldr": TLDR, "hh": HH}
"""The formats by their names in recipes."""


def normalise_tldr_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str, max_tokens: int = 500) -> str:
    """Return a TL;DR prompt in the form that SFT and reward model were trained on: ending in "TL;DR:", and truncated.

    Everything from the post's first "TL;DR:" on is dropped. By default, `max_tokens` of the policy's tokenizer are the
    context length minus the tokens to generate (550 - 50).
    """
    end = f"\n{_TLDR_MARKER}"
    room = max_tokens - len(tokenizer(end, add_special_tokens=False)["input_ids"])  # 5 with GPT-2's vocabulary
    post = _truncated_text(tokenizer, prompt.split(_TLDR_MARKER)[0], room)
    return _truncated_text(tokenizer, post + end, max_tokens)


def _truncated_text(tokenizer: "PreTrainedTokenizerBase", text: str, max_tokens: int) -> str:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:max_tokens]
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def _without_eos(text: str) -> str:
    """Remove EOS until none is left: a removal can join the halves of another one."""
    while EOS in text:
        text = text.replace(EOS, "")
    return text
