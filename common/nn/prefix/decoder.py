"""The last hidden states of texts with a common beginning, from which log-probabilities and rewards are computed.

A group's texts are laid out as packed rows, in which their common beginning is computed once
(common/nn/prefix/packing.py), or, for models that cannot read those, as padded rows. Attention is causal in both, so
that a text's states depend neither on its neighbours nor on later tokens of its row.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel

from brain_align.common.errors import first_line
from brain_align.common.nn.models.exactness import decoder_of, takes_positions
from brain_align.common.nn.models.rotary import longest_text
from brain_align.common.nn.prefix.packing import Request, TokenBudget, pack
from brain_align.common.nn.prefix.stock_models import enable_packed_rows, longest_packed

_LOG = logging.getLogger(__name__)

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
_TOLERANCE_IN_16_BITS = 0.1
"""The part of its norm by which rounding may move a hidden state; a wrong mask or position changes it altogether."""
_EXAMPLE = (24, (1, 9, 4, 0, 6))
"""Lengths of the prompt and the outputs on which a model is checked."""


@dataclass(frozen=True)
class PackedCheck:
    """The difference between packed and padded rows, in the unit of the compared values."""

    what: str  # the compared values
    difference: float  # the largest
    tolerance: float  # the difference that rounding explains
    failure: str | None = None  # why packed rows could not be computed at all; the difference is NaN then

    @property
    def passed(self) -> bool:
        """True where the two agree; not with a difference of NaN."""
        return self.difference <= self.tolerance

    @property
    def because(self) -> str:
        """The reason for padded rows where the two do not agree."""
        if self.failure is not None:
            return f"packed rows cannot be computed ({self.failure})"
        return (
            f"packed rows give other {self.what} than padded rows, by {self.difference:.2g}, where rounding explains "
            f"{self.tolerance:.2g}"
        )


@dataclass(frozen=True)
class TextStates:
    """Hidden states of texts, each a prompt and one of its outputs."""

    hidden: torch.Tensor  # [tokens, h], of all tokens of all rows
    places: list[torch.Tensor]  # per text [text tokens] int64, on the CPU: the rows of `hidden` of its tokens

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """Return the hidden states at some places.  # [places, h]."""
        return self.hidden[places.to(self.hidden.device)]


class PrefixDecoder:
    """The decoder of a causal model, over groups of texts with a common beginning.

    Attributes:
        model: the model, or its decoder alone.
        padded_because: the reason why rows are padded, each with a copy of its prompt; None where they are packed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._decoder = decoder_of(model)
        self._takes_positions = takes_positions(self._decoder)
        self._window = longest_packed(model.config)
        self.padded_because = enable_packed_rows(model)
        if self.padded_because:
            _LOG.warning(
                "A %s model is computed on padded rows, which repeat each prompt for every output: %s.",
                model.config.model_type,
                self.padded_because,
            )

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def longest_text(self) -> int:
        """The most tokens (prompt and output) of a text."""
        return longest_text(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the model computes in."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.model.get_input_embeddings().weight.device

    def budget(self, max_tokens: int) -> TokenBudget:
        """Return the budget of a forward pass, for rows as this model lays them out."""
        return TokenBudget(max_tokens, packed=self.padded_because is None, window=self._window)

    def can_pack(self, requests: Sequence[Request]) -> bool:
        """Return whether packed rows are exact for these texts."""
        budget = self.budget(1)
        return all(budget.packs(len(prompt), list(map(len, outputs))) for prompt, outputs in requests)

    def packed(self, requests: Sequence[Request]) -> TextStates:
        """Compute the states of groups in one packed row; differentiable."""
        row, device = pack(requests), self.device
        hidden = self._decode(row.token_ids.to(device), row.position_ids.to(device), row.layout.encode())
        return TextStates(hidden[0], row.places)

    def padded(self, request: Request) -> TextStates:
        """Compute the states of one group in padded rows, one per output; differentiable."""
        prompt, outputs = request
        device = self.device
        # Padding is on the right, where no token sees it, so its id does not matter.
        rows = pad_sequence([torch.cat([prompt, output]) for output in outputs], batch_first=True).to(device)  # [n, t]
        positions = torch.arange(rows.shape[1], device=device).expand_as(rows)
        hidden = self._decode(rows, positions, None)  # [n, t, h]
        starts = [row * rows.shape[1] for row in range(len(outputs))]
        places = [
            torch.arange(start, start + len(prompt) + len(output))
            for start, output in zip(starts, outputs, strict=True)
        ]
        return TextStates(hidden.flatten(0, 1), places)

    @torch.no_grad()
    def last_states(self, requests: Sequence[Request], max_tokens: int) -> torch.Tensor:
        """Compute the hidden state of each text's last token, without gradients.

        Args:
            requests: groups; their texts are non-empty, and no longer than the model's context.
            max_tokens: tokens per forward pass, padding included, but at least one text. The splitting and combining
                of groups depends on the arguments alone.

        Returns:
            [texts, h], in the order of the requests and their outputs.
        """
        if not self.can_pack(requests):
            budget = TokenBudget(max_tokens, packed=False)
            return torch.cat(
                [_last(self.padded(part)) for one in requests for part in budget.split(one, reads_last=True)]
            )
        return torch.cat([_last(self.packed(batch)) for batch in _batches(requests, max_tokens)])

    def check_packed(self) -> PackedCheck | None:
        """Compare packed with padded rows on made-up texts; return None where rows are padded anyway."""
        generator = torch.Generator().manual_seed(0)

        def text(length: int) -> torch.Tensor:
            return torch.randint(self.config.vocab_size, (length,), generator=generator)

        prompt, outputs = _EXAMPLE
        room = self.longest_text - max(outputs)
        request = (text(max(1, min(prompt, room))), [text(length) for length in outputs])
        if not self.can_pack([request]):
            return None
        tolerance = _TOLERANCE.get(self.dtype, _TOLERANCE_IN_16_BITS)
        with torch.no_grad():
            padded = _last(self.padded(request)).float()
            try:
                packed = _last(self.packed([request])).float()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - of any kind: the model's own code
                return PackedCheck("hidden states", torch.nan, tolerance, first_line(error))
        difference = ((packed - padded).norm(dim=1) / padded.norm(dim=1)).max()
        return PackedCheck("hidden states (parts of their norm)", float(difference), tolerance)

    def pad_unless_exact(self) -> None:
        """Compute on padded rows from now on, with a warning, if packed rows of made-up texts give other states."""
        check = self.check_packed()
        if check is not None and not check.passed:
            self.padded_because = check.because
            _LOG.warning("Padded rows, which are several times slower: %s.", self.padded_because)

    def _decode(self, rows: torch.Tensor, positions: torch.Tensor, layout: torch.Tensor | None) -> torch.Tensor:
        """Compute the last hidden states, [rows, t, h]."""
        named = {"position_ids": positions} if self._takes_positions else {}
        return self._decoder(input_ids=rows, attention_mask=layout, use_cache=False, **named)[0]


def _last(states: TextStates) -> torch.Tensor:
    return states.at(torch.stack([places[-1] for places in states.places]))


def _batches(requests: Sequence[Request], max_tokens: int) -> list[list[Request]]:
    """Combine groups, or parts of large ones, into lists that fit into one packed row each."""
    budget = TokenBudget(max_tokens, packed=True)
    batches: list[list[Request]] = []
    room = 0
    for part in (part for request in requests for part in budget.split(request, reads_last=True)):
        prompt, outputs = part
        tokens = len(prompt) + sum(map(len, outputs))
        if tokens > room or not batches:
            batches.append([])
            room = max_tokens
        batches[-1].append(part)
        room -= tokens
    return batches
