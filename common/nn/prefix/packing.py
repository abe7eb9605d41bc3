"""Packed rows: `[prompt | y_1 | … | y_n]`, with the prompt once, and several groups one after the other.

Each output's positions continue its prompt's, and its tokens attend to the prompt and to itself
(common/nn/prefix/attention.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

Request = tuple[torch.Tensor, Sequence[torch.Tensor]]
"""A prompt [tokens] and some of its outputs, each [tokens]; int64, on the CPU."""


@dataclass(frozen=True)
class GroupSegments:
    """The segments of one group in a packed row."""

    start: int  # the place of the prompt's first token in the row
    prompt: int  # tokens of the prompt
    outputs: tuple[int, ...]  # tokens of each output that has any in the row

    @property
    def prompt_slice(self) -> slice:
        """The prompt's places in the row."""
        return slice(self.start, self.start + self.prompt)

    @property
    def outputs_slice(self) -> slice:
        """The places of all outputs, which are adjacent."""
        first = self.start + self.prompt
        return slice(first, first + sum(self.outputs))


@dataclass(frozen=True)
class Layout:
    """The structure of a packed row, for the attention.

    It passes through a stock model in place of an attention mask, as a small integer tensor (`encode`, `decode`): that
    argument reaches every layer of every architecture, also when a layer is recomputed for its gradient.
    """

    groups: tuple[GroupSegments, ...]

    def encode(self) -> torch.Tensor:
        """Return per group: number of outputs, tokens of the prompt, tokens of each output.  # [1, 1, 1, k] int64."""
        numbers = [number for one in self.groups for number in (len(one.outputs), one.prompt, *one.outputs)]
        return torch.tensor(numbers, dtype=torch.int64).view(1, 1, 1, -1)

    @staticmethod
    def decode(mask: torch.Tensor) -> "Layout":
        """Return the layout that `encode` made a tensor of; the same object for each layer of a model."""
        return _layout(tuple(mask.flatten().tolist()))

    @property
    def tokens(self) -> int:
        """The row's length."""
        return self.groups[-1].outputs_slice.stop

    @cached_property
    def output_places(self) -> torch.Tensor:
        """The places of all groups' output tokens, in the row's order.  # [output tokens] int64."""
        slices = [one.outputs_slice for one in self.groups]
        return torch.cat([torch.arange(places.start, places.stop) for places in slices])

    @cached_property
    def padded_outputs(self) -> torch.Tensor:
        """All outputs as rows of equal length; an output's last place is repeated.  # [outputs, longest] int64."""
        lengths = torch.tensor([length for one in self.groups for length in one.outputs])
        steps = torch.minimum(torch.arange(int(lengths.max()))[None], lengths[:, None] - 1)
        first = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)[:-1]])
        return self.output_places[first[:, None] + steps]

    @cached_property
    def is_padding(self) -> torch.Tensor:
        """The repeated places of `padded_outputs`.  # [outputs, longest] bool."""
        lengths = torch.tensor([length for one in self.groups for length in one.outputs])
        return torch.arange(int(lengths.max())) >= lengths[:, None]


@lru_cache(maxsize=4)
def _layout(encoded: tuple[int, ...]) -> Layout:
    numbers = iter(encoded)
    groups, start = [], 0
    for count in numbers:
        groups.append(GroupSegments(start, next(numbers), tuple(next(numbers) for _ in range(count))))
        start = groups[-1].outputs_slice.stop
    return Layout(tuple(groups))


@dataclass(frozen=True)
class PackedRow:
    """One row for the model, with the places of each text in it."""

    token_ids: torch.Tensor  # [1, t] int64
    position_ids: torch.Tensor  # [1, t] int64
    layout: Layout
    places: list[torch.Tensor]  # per output [text tokens] int64: the places of its prompt's tokens, then of its own


def pack(requests: Sequence[Request]) -> PackedRow:
    """Pack groups, at least one, into one row; prompts have at least one token, outputs may have none."""
    tokens: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    places: list[torch.Tensor] = []
    groups: list[GroupSegments] = []
    place = 0
    for prompt, outputs in requests:
        groups.append(GroupSegments(place, len(prompt), tuple(len(output) for output in outputs if len(output))))
        tokens += [prompt, *outputs]
        positions += [torch.arange(len(prompt)), *(torch.arange(len(one)) + len(prompt) for one in outputs)]
        of_prompt = torch.arange(place, place + len(prompt))
        place += len(prompt)
        for output in outputs:
            places.append(torch.cat([of_prompt, torch.arange(place, place + len(output))]))
            place += len(output)
    return PackedRow(torch.cat(tokens)[None], torch.cat(positions)[None], Layout(tuple(groups)), places)


@dataclass(frozen=True)
class TokenBudget:
    """The tokens that fit into one forward pass that predicts each output's tokens.

    An output's last token predicts nothing that is wanted, so packed rows leave it out.

    Attributes:
        max_tokens: the largest number of tokens per pass, padding included, but at least one output.
        packed: whether rows are packed; otherwise each output is a padded row of its own, after a copy of the prompt.
        window: the longest text (prompt and output) that can be packed; None for any.
    """

    max_tokens: int
    packed: bool
    window: int | None = None

    def packs(self, prompt_length: int, output_lengths: Sequence[int]) -> bool:
        """Return whether a group goes into a packed row, which others may share."""
        longest = prompt_length + max(output_lengths, default=0)
        return self.packed and (self.window is None or longest <= self.window)

    def tokens(self, prompt_length: int, output_lengths: Sequence[int]) -> int:
        """Return the tokens that pass through the model for a group's outputs of these lengths."""
        if self.packs(prompt_length, output_lengths):
            return prompt_length + sum(max(0, length - 1) for length in output_lengths)
        return len(output_lengths) * (prompt_length + max(output_lengths, default=0))

    def split(self, request: Request, *, reads_last: bool = False) -> list[Request]:
        """Split a group into parts that fit into one pass each; with `reads_last` each output's last token is read."""
        prompt, outputs = request
        slices = self.parts(len(prompt), [len(output) + reads_last for output in outputs])
        return [(prompt, outputs[part]) for part in slices]

    def parts(self, prompt_length: int, output_lengths: Sequence[int]) -> Iterator[slice]:
        """Split a group's outputs into parts that fit into one pass each.

        Yields:
            Slices that cover all outputs in their order; they depend on the arguments alone.
        """
        start = 0
        for index in range(1, len(output_lengths)):
            if self.tokens(prompt_length, output_lengths[start : index + 1]) > self.max_tokens:
                yield slice(start, index)
                start = index
        if output_lengths:
            yield slice(start, len(output_lengths))
