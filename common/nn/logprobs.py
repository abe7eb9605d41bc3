"""Sequence log-probabilities of groups' outputs: the same numerics for the learner and the prior scorer.

Callers pass prompts and outputs; the decoder (common/nn/prefix/decoder.py) decides how to lay them out in a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from brain_align.common.errors import UserError, first_line
from brain_align.common.nn.lm_head import LMHead
from brain_align.common.nn.models.exactness import check_exact
from brain_align.common.nn.prefix.decoder import PackedCheck, PrefixDecoder, TextStates
from brain_align.common.nn.prefix.packing import Request, TokenBudget

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
_TOLERANCE_IN_16_BITS = 0.05
"""Nats per token by which packed and padded rows may differ; a wrong mask or position changes tenths at least."""


TokenGroup = tuple[Sequence[int], Sequence[Sequence[int]]]
"""The token ids of a prompt, and of each of its outputs."""


@dataclass(frozen=True)
class GroupLogprobs:
    """Log-probabilities of one prompt's outputs, in nats.

    Attributes:
        sums: log q(y|x) of each output; 0 for an output without tokens.  # [outputs] float32
        tokens: log q(y_t|x, y_<t) of each token of each output.  # outputs × [output tokens] float32
    """

    sums: torch.Tensor
    tokens: list[torch.Tensor]


def sequence_logprobs(
    model: PreTrainedModel | PeftModel, groups: Sequence[TokenGroup], *, max_tokens: int | None = None
) -> list[GroupLogprobs]:
    """Compute the log-probabilities of each group's outputs under any stock causal language model.

    A prompt that several outputs share is computed once, where the model can read packed rows exactly; otherwise
    each output is computed behind a copy of its prompt, and a warning says why. The results are differentiable, and
    are the log-softmax of the model's own logits at temperature 1. EOS counts where it is among an output's tokens.

    The model keeps its weights and its mode. Its attention is replaced once by one that reads packed rows and
    computes everything else by PyTorch's SDPA.

    Args:
        model: a transformers causal language model, or a PEFT model on one, whole on one device.
        groups: token ids: prompts of at least one token, each with at least one output.
        max_tokens: tokens per forward pass, for memory without gradients; by default all groups go in one pass.

    Returns:
        One entry per group, on the model's device.

    Raises:
        ValueError: a prompt or a list of outputs is empty, a text is longer than the model's context, or dropout is
            active.
        UserError: the model's logits are not just its output layer applied to its last hidden states.
    """
    if not groups:
        return []
    tokens = iter(_checked(model).token_logprobs([request_of(*group) for group in groups], max_tokens))
    of_groups = [[next(tokens) for _ in outputs] for _, outputs in groups]
    return [GroupLogprobs(_sums(of_group), of_group) for of_group in of_groups]


class SequenceLogprobs(nn.Module):
    """log q(y|x) in nats of outputs under a causal language model: sums over the output's tokens.

    An output without tokens has log-probability 0. EOS counts where it is among an output's tokens.

    Attributes:
        model: the prior, or a policy; gradients follow its parameters' `requires_grad`.
        decoder: lays out the texts, packed or padded; it knows the model's device, dtype and configuration.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.head = LMHead(base.get_output_embeddings())
        self.decoder = PrefixDecoder(base)  # not a module: the model is registered once, as `model`

    def forward(self, requests: Sequence[Request]) -> torch.Tensor:
        """Compute the log-probabilities of all outputs of all requests, in their order; differentiable.

        Args:
            requests: pass through the model together, in one row where rows are packed; see `TokenBudget`.

        Returns:
            [outputs] float32, on the model's device.

        Raises:
            ValueError: a request has no output, no prompt token, or more tokens than the model's context.
        """
        return _sums(self.token_logprobs(requests))

    def token_logprobs(self, requests: Sequence[Request], max_tokens: int | None = None) -> list[torch.Tensor]:
        """Compute log q(y_t|x, y_<t) of each token of each output; `forward` returns their sums.

        Args:
            requests: as for `forward`.
            max_tokens: splits the requests, and their outputs, into forward passes of so many tokens.

        Returns:
            [output tokens] float32 per output of each request.

        Raises:
            ValueError: as for `forward`.
        """
        for prompt, outputs in requests:
            self._check_lengths(prompt, outputs)
        if max_tokens is None:
            return self._at_once(requests)
        budget = self.decoder.budget(max_tokens)
        return [tokens for one in requests for part in budget.split(one) for tokens in self._at_once([part])]

    @torch.no_grad()
    def in_parts(self, request: Request, max_tokens: int) -> torch.Tensor:
        """Compute `forward` of one group without gradients, in as many forward passes as `max_tokens` requires."""
        return _sums(self.token_logprobs([request], max_tokens))

    @torch.no_grad()
    def check_packed(self, request: Request, max_tokens: int) -> PackedCheck | None:
        """Compare packed with padded rows on a group; return None where its rows are padded anyway."""
        if not self.decoder.can_pack([request]):
            return None
        tolerance = _TOLERANCE.get(self.decoder.dtype, _TOLERANCE_IN_16_BITS)
        what = "log-probabilities (nats per token)"
        padded, packed = (
            partial(self._sums_of, compute, TokenBudget(max_tokens, packed=packs).split(request))
            for compute, packs in ((self._padded, False), (self._packed, True))
        )
        tokens = torch.tensor([max(1, len(output)) for output in request[1]], device=self.decoder.device)
        expected = padded()
        try:
            actual = packed()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - of any kind: the model's own code
            return PackedCheck(what, torch.nan, tolerance, first_line(error))
        return PackedCheck(what, float(((actual - expected).abs() / tokens).max()), tolerance)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that training changes, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    @staticmethod
    def _sums_of(compute: Callable[[list[Request]], list[torch.Tensor]], parts: list[Request]) -> torch.Tensor:
        return torch.cat([_sums(compute([part])) for part in parts])

    def _at_once(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        return self._packed(requests) if self.decoder.can_pack(requests) else self._padded(requests)

    def _packed(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        return self._read(requests, self.decoder.packed([_without_last(request) for request in requests]))

    def _padded(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        return [tokens for one in requests for tokens in self._read([one], self.decoder.padded(_without_last(one)))]

    def _read(self, requests: Sequence[Request], states: TextStates) -> list[torch.Tensor]:
        """Return the log-probabilities of outputs, given the states of all their tokens but the last."""
        outputs = [(len(prompt), output) for prompt, outputs in requests for output in outputs]
        predicting = [
            # A token is predicted one place before it; the prompt's last token predicts the output's first.
            places[prompt - 1 :][: len(output)]
            for places, (prompt, output) in zip(states.places, outputs, strict=True)
        ]
        # A place that predicts several tokens (a prompt's last one) goes through the head once.
        predictors, predictor_of = torch.cat(predicting).unique(return_inverse=True)
        targets, device = torch.cat([output for _, output in outputs]), self.decoder.device
        logprobs = self.head(states.at(predictors), predictor_of.to(device), targets.to(device))
        return list(logprobs.split([len(output) for _, output in outputs]))

    def _check_lengths(self, prompt: torch.Tensor, outputs: Sequence[torch.Tensor]) -> None:
        if not len(outputs):
            raise ValueError("a group needs at least one output")
        if not len(prompt):
            raise ValueError("a prompt needs at least one token: the first output token is predicted from it")
        limit, longest = self.decoder.longest_text, len(prompt) + max(map(len, outputs))
        if longest > limit:
            raise ValueError(f"prompt and output have {longest} tokens, the model reads {limit}")


def request_of(prompt_ids: Sequence[int], outputs: Sequence[Sequence[int]]) -> Request:
    """Make a request from plain token ids."""
    return torch.tensor(prompt_ids, dtype=torch.int64), [torch.tensor(ids, dtype=torch.int64) for ids in outputs]


_PADDED_BECAUSE: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()
"""The models that `sequence_logprobs` has checked, each with the reason why its rows are padded."""


def _checked(model: PreTrainedModel | PeftModel) -> SequenceLogprobs:
    """Prepare a user's model, which no loader of ours has checked; the checks are made once per model."""
    _refuse_dropout(model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if model not in _PADDED_BECAUSE:
        head = base.get_output_embeddings()
        if not (isinstance(head, nn.Linear) and head.weight.is_floating_point()):
            raise UserError(
                f"The output layer of this {base.config.model_type} model is a {type(head).__name__}, not a plain "
                f"linear layer; merge an adapter on it into the model, and do not quantise it."
            )
        check_exact(base, base.name_or_path or "as given")
        computer = SequenceLogprobs(model)
        computer.decoder.pad_unless_exact()
        _PADDED_BECAUSE[model] = computer.decoder.padded_because
        return computer
    computer = SequenceLogprobs(model)
    computer.decoder.padded_because = _PADDED_BECAUSE[model]
    return computer


def _refuse_dropout(model: nn.Module) -> None:
    """Refuse active dropout: attention's own is not applied to packed rows, and any other makes results random."""
    for name, module in model.named_modules():
        rates = [module.p] if isinstance(module, nn.Dropout) else [getattr(module, "attention_dropout", 0.0)]
        if module.training and any(isinstance(rate, float) and rate > 0 for rate in rates):
            raise ValueError(f"dropout is active in {name or 'the model'}; call model.eval(), or set its rate to 0")


def _sums(tokens: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([one.sum() for one in tokens])


def _without_last(request: Request) -> Request:
    """Drop each output's last token, which predicts nothing that is wanted."""
    prompt, outputs = request
    return prompt, [output[:-1] for output in outputs]
