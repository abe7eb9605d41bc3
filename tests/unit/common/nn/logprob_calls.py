"""`SequenceLogprobs` called on plain token ids."""

import torch

from brain_align.common.nn.logprobs import SequenceLogprobs, request_of


def group_logprobs(model, prompt, outputs) -> torch.Tensor:
    """log q(y|x) of each output of one prompt.  # [n]."""
    return SequenceLogprobs(model)([request_of(prompt, outputs)])


def token_logprobs(model, prompt, outputs) -> list[torch.Tensor]:
    """log q(y_t|x, y_<t) of each token of each output."""
    return SequenceLogprobs(model).token_logprobs([request_of(prompt, outputs)])
