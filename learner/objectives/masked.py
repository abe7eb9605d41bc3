"""Reductions over the valid slots of groups, with gradients that are never NaN."""

import torch


def masked_log_softmax(scores: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Return the log-softmax over the used slots of each row; −inf in the others.

    A row without a used slot would be NaN, and so would its gradient; zeros replace it, and its values mean nothing.
    Scores are read only where used.  # [b, n], [b, n] bool -> [b, n].
    """
    return _filled(scores, used).log_softmax(dim=-1)


def masked_logsumexp(scores: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Return the log-sum-exp over the used slots of the last dimension; 0 where there is none.

    Scores are finite, and read only where used.  # [..., n], [..., n] bool -> [...].
    """
    return torch.where(used.any(dim=-1), _filled(scores, used).logsumexp(dim=-1), 0.0)


def _filled(scores: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    return torch.where(used, scores, torch.where(used.any(dim=-1, keepdim=True), -torch.inf, 0.0))


def masked_mean(values: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Return the mean over the used slots of the last dimension; 0 where there is none.  # [..., n] -> [...]."""
    return torch.where(used, values, 0.0).sum(dim=-1) / used.sum(dim=-1).clamp(min=1)


def at_least(count: int, valid: torch.Tensor) -> torch.Tensor:
    """Return the valid slots of rows that have at least `count` of them.  # [b, n]."""
    return valid & (valid.sum(dim=-1, keepdim=True) >= count)
