"""Sequence log-probabilities of groups' outputs: the same numerics for learner and prior scorer.

Callers hand over prompts and outputs. How these are laid out in a batch is decided here: as packed rows, in which each
prompt is computed once (common/nn/packing.py), or, for models that cannot read those, as padded rows.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel

from common.nn.causal_lm import context_length
from common.nn.lm_head import LMHead
from common.nn.packing import Request, TokenBudget, pack
from common.nn.prefix_models import enable_packed_rows, longest_packed

_LOG = logging.getLogger(__name__)

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
_TOLERANCE_IN_16_BITS = 0.05
"""Nats a token by which packed and padded rows may differ; a wrong mask or position is off by tenths, at least."""

TokenLogprobs = Callable[[Sequence[Request]], list[torch.Tensor]]
"""What computes the log-probabilities of each output's tokens."""


@dataclass(frozen=True)
class PackedCheck:
    """How far packed rows are from padded ones on a group.

    Attributes:
        difference: of sequence log-probabilities, the largest a token, in nats.
        tolerance: what rounding explains.
    """

    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the two agree; a difference of NaN does not."""
        return self.difference <= self.tolerance


class SequenceLogprobs(nn.Module):
    """log q(y|x) in nats of outputs under a causal language model: sums over the output's tokens.

    An output of no tokens has log-probability 0. EOS counts where it is among an output's tokens.

    Attributes:
        model: the prior, or a policy; gradients follow its parameters' `requires_grad`.
        padded_because: why rows are padded, each with a copy of its prompt; None where they are packed.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model
        base = self._base
        self.head = LMHead(base.get_output_embeddings())
        self.padded_because = enable_packed_rows(base)
        if self.padded_because:
            _LOG.warning(
                "A %s model is computed on padded rows, which repeat each prompt for every output: %s.",
                base.config.model_type,
                self.padded_because,
            )

    def forward(self, requests: Sequence[Request]) -> torch.Tensor:
        """The log-probabilities of all outputs of all requests, in their order; differentiable.

        Args:
            requests: go through the model at once, in one row, where rows are packed; see `TokenBudget`.

        Returns:
            [outputs] float32, on the model's device.

        Raises:
            ValueError: a request has no output or no prompt token, or more tokens than the model's context.
        """
        return _sums(self.token_logprobs(requests))

    def token_logprobs(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        """Log q(y_t|x, y_<t) of each token of each output: what `forward` sums.

        Returns:
            [output tokens] float32, for each output of each request.
        """
        for prompt, outputs in requests:
            self._check_lengths(prompt, outputs)
        return self._packed(requests) if self._can_pack(requests) else self._padded(requests)

    def budget(self, max_tokens: int) -> TokenBudget:
        """A budget of a forward pass, for rows as they are laid out here."""
        return TokenBudget(max_tokens, packed=self.padded_because is None)

    @torch.no_grad()
    def in_parts(self, request: Request, max_tokens: int) -> torch.Tensor:
        """`forward` of one group without gradients, in as many forward passes as `max_tokens` asks for."""
        return _in_parts(self.token_logprobs, request, self.budget(max_tokens))

    @torch.no_grad()
    def check_packed(self, request: Request, max_tokens: int) -> PackedCheck | None:
        """Compare packed with padded rows on a group; None where its rows are padded anyway.

        Args:
            request: a group.
            max_tokens: of one forward pass.
        """
        if not self._can_pack([request]):
            return None
        packed = _in_parts(self._packed, request, TokenBudget(max_tokens, packed=True))
        padded = _in_parts(self._padded, request, TokenBudget(max_tokens, packed=False))
        tokens = torch.tensor([max(1, len(output)) for output in request[1]], device=packed.device)
        tolerance = _TOLERANCE.get(self.dtype, _TOLERANCE_IN_16_BITS)
        return PackedCheck(float(((packed - padded).abs() / tokens).max()), tolerance)

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        return self._base.config

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self._base.dtype

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._base.get_input_embeddings().weight.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    @property
    def _base(self) -> PreTrainedModel:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _can_pack(self, requests: Sequence[Request]) -> bool:
        window = longest_packed(self.config)
        return not self.padded_because and (not window or max(map(_longest, requests)) <= window)

    def _packed(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        row, device = pack(requests), self.device
        hidden = self._decoder(row.token_ids.to(device), row.position_ids.to(device), row.layout.encode())[0]
        predicting = hidden[row.predictors.to(device)]  # [u, h]
        logprobs = self.head(predicting, row.predictor_of.to(device), row.targets.to(device))
        return list(logprobs.split(row.lengths))

    def _padded(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        return [tokens for request in requests for tokens in self._padded_group(request)]

    def _padded_group(self, request: Request) -> list[torch.Tensor]:
        prompt, outputs = request
        device = self.device
        lengths = torch.tensor([len(output) for output in outputs])
        # Attention is causal and padding stands on the right, where no token sees it: any id will do.
        rows = pad_sequence([torch.cat([prompt, output]) for output in outputs], batch_first=True).to(device)  # [n, t]
        positions = torch.arange(rows.shape[1], device=device).expand_as(rows)
        # What predicts a token stands one place before it.
        hidden = self._decoder(rows, positions, None)[:, len(prompt) - 1 : -1]  # [n, t - prompt, h]
        counted = (torch.arange(hidden.shape[1]) < lengths[:, None]).to(device)  # [n, t - prompt]
        predicting = hidden[counted]  # [tokens, h]
        own = torch.arange(len(predicting), device=device)
        return list(self.head(predicting, own, rows[:, len(prompt) :][counted]).split(lengths.tolist()))

    def _decoder(self, rows: torch.Tensor, positions: torch.Tensor, layout: torch.Tensor | None) -> torch.Tensor:
        """The last hidden states, [rows, t, h]."""
        decoder: nn.Module = self._base.base_model  # `.model` of a Llama, `.transformer` of a GPT-J
        outputs = decoder(input_ids=rows, position_ids=positions, attention_mask=layout, use_cache=False)
        return outputs.last_hidden_state

    def _check_lengths(self, prompt: torch.Tensor, outputs: Sequence[torch.Tensor]) -> None:
        if not len(outputs):
            raise ValueError("a group needs at least one output")
        if not len(prompt):
            raise ValueError("a prompt needs at least one token: the first output token is predicted from it")
        limit = context_length(self.config)
        if (longest := _longest((prompt, outputs))) > limit:
            raise ValueError(f"prompt and output have {longest} tokens, the model reads {limit}")


def request_of(prompt_ids: Sequence[int], outputs: Sequence[Sequence[int]]) -> Request:
    """A request from plain token ids."""
    return torch.tensor(prompt_ids, dtype=torch.int64), [torch.tensor(ids, dtype=torch.int64) for ids in outputs]


def _sums(tokens: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([one.sum() for one in tokens])


def _in_parts(compute: TokenLogprobs, request: Request, budget: TokenBudget) -> torch.Tensor:
    prompt, outputs = request
    parts = budget.parts(len(prompt), [len(output) for output in outputs])
    return torch.cat([_sums(compute([(prompt, outputs[part])])) for part in parts])


def _longest(request: Request) -> int:
    prompt, outputs = request
    return len(prompt) + max(map(len, outputs))
