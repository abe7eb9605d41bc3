"""The probe that is published with a version: what the learner's policy thinks of a short, fixed text."""

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig

from brain_align.common.nn.logprobs import request_of
from brain_align.common.nn.models.causal_lm import context_length
from brain_align.common.nn.prefix.packing import Request
from brain_align.common.policies import Probe

_HALF = 8
"""Tokens of prompt and of continuation: few enough to cost nothing, too many to agree by chance."""
_STRIDE = 7919  # a prime, so that the ids are spread over vocabularies of any size


@torch.no_grad()
def make_probe(logprobs: Callable[[list[Request]], torch.Tensor], config: PreTrainedConfig) -> Probe:
    """The probe of the policy as it is now.

    Args:
        logprobs: `Engine.logprobs`; all ranks make the probe together, since each may hold a part of the weights.
        config: of the policy's model.
    """
    half = min(_HALF, context_length(config) // 2)
    text = [(position + 1) * _STRIDE % config.vocab_size for position in range(2 * half)]
    prompt, continuation = text[:half], text[half:]
    beginnings = [continuation[: length + 1] for length in range(half)]
    sums = logprobs([request_of(prompt, beginnings)]).double()
    each = torch.diff(sums, prepend=sums.new_zeros(1))  # a longer beginning has one token more
    return Probe(prompt, continuation, each.tolist())
