"""Sequence log-probabilities of groups' outputs: the same numerics for learner and prior scorer.

Callers hand over prompts and outputs; how these are laid out in a batch is the decoder's business
(common/nn/prefix/decoder.py).
"""

from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from brain_align.common.nn.lm_head import LMHead
from brain_align.common.nn.models.causal_lm import context_length
from brain_align.common.nn.prefix.decoder import PackedCheck, PrefixDecoder, TextStates, longest_text
from brain_align.common.nn.prefix.packing import Request, TokenBudget

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
_TOLERANCE_IN_16_BITS = 0.05
"""Nats a token by which packed and padded rows may differ; a wrong mask or position is off by tenths, at least."""

TokenLogprobs = Callable[[Sequence[Request]], list[torch.Tensor]]
"""What computes the log-probabilities of each output's tokens."""


class SequenceLogprobs(nn.Module):
    """log q(y|x) in nats of outputs under a causal language model: sums over the output's tokens.

    An output of no tokens has log-probability 0. EOS counts where it is among an output's tokens.

    Attributes:
        model: the prior, or a policy; gradients follow its parameters' `requires_grad`.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.head = LMHead(base.get_output_embeddings())
        self._decoder = PrefixDecoder(base)  # no module: the model is registered once, as `model`

    @property
    def padded_because(self) -> str | None:
        """Why rows are padded, each with a copy of its prompt; None where they are packed."""
        return self._decoder.padded_because

    @padded_because.setter
    def padded_because(self, reason: str) -> None:
        self._decoder.padded_because = reason

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
        return self._packed(requests) if self._decoder.can_pack(requests) else self._padded(requests)

    def pad_unless_exact(self) -> None:
        """See `PrefixDecoder.pad_unless_exact`."""
        self._decoder.pad_unless_exact()

    def budget(self, max_tokens: int) -> TokenBudget:
        """A budget of a forward pass, for rows as they are laid out here."""
        return self._decoder.budget(max_tokens)

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
        if not self._decoder.can_pack([request]):
            return None
        packed = _in_parts(self._packed, request, TokenBudget(max_tokens, packed=True))
        padded = _in_parts(self._padded, request, TokenBudget(max_tokens, packed=False))
        tokens = torch.tensor([max(1, len(output)) for output in request[1]], device=packed.device)
        tolerance = _TOLERANCE.get(self.dtype, _TOLERANCE_IN_16_BITS)
        return PackedCheck(float(((packed - padded).abs() / tokens).max()), tolerance)

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        return self._decoder.config

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self._decoder.dtype

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._decoder.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def _packed(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        return self._read(requests, self._decoder.packed([_without_last(request) for request in requests]))

    def _padded(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        return [tokens for one in requests for tokens in self._read([one], self._decoder.padded(_without_last(one)))]

    def _read(self, requests: Sequence[Request], states: TextStates) -> list[torch.Tensor]:
        """The log-probabilities of outputs, from the states of all their tokens but the last."""
        outputs = [(len(prompt), output) for prompt, outputs in requests for output in outputs]
        predicting = [
            # What predicts a token stands one place before it; the prompt's last token predicts the output's first.
            places[prompt - 1 :][: len(output)]
            for places, (prompt, output) in zip(states.places, outputs, strict=True)
        ]
        # A place that predicts several tokens (a prompt's last one) goes through the head once.
        predictors, predictor_of = torch.cat(predicting).unique(return_inverse=True)
        targets = torch.cat([output for _, output in outputs])
        logprobs = self.head(states.at(predictors), predictor_of.to(self.device), targets.to(self.device))
        return list(logprobs.split([len(output) for _, output in outputs]))

    def _check_lengths(self, prompt: torch.Tensor, outputs: Sequence[torch.Tensor]) -> None:
        if not len(outputs):
            raise ValueError("a group needs at least one output")
        if not len(prompt):
            raise ValueError("a prompt needs at least one token: the first output token is predicted from it")
        limit = context_length(self.config)
        if (longest := longest_text((prompt, outputs))) > limit:
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


def _without_last(request: Request) -> Request:
    """An output's last token predicts nothing that is wanted."""
    prompt, outputs = request
    return prompt, [output[:-1] for output in outputs]
