"""Log-probabilities of given tokens from hidden states, without a tensor of shape [tokens, vocabulary].

The LM head's logits are computed in tiles of some tokens × some of the vocabulary; only their log-sum-exp and the
targets' logits are kept, and the backward pass computes each tile again. A hidden state that predicts several tokens
(a prompt's last one predicts the first token of each output) passes through the head once.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_TOKENS_OF_A_TILE = 256
_SMALLEST_TILE = 1 << 16
"""Elements (0.25 MiB); below it, a small model's matrix products are inefficient."""
_SMALLEST_TILE_ON_GPU = 1 << 22
"""Elements (16 MiB); below it, a GPU spends its time on launching kernels."""


class LMHead(nn.Module):
    """A model's output layer, which returns the log-probabilities of tokens.

    It holds the layer's own parameters, so that DeepSpeed ZeRO-3 gathers them when this module is called.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias

    def forward(self, hidden: torch.Tensor, predictor_of: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute log softmax(W h + b)[target] of each target, in nats.

        Besides its result, the forward pass takes less memory than `hidden`, and the backward pass twice as much (half
        of it for the gradient of `hidden`).

        Args:
            hidden: each hidden state once.  # [u, h]
            predictor_of: the index of the hidden state that predicts each target.  # [tokens] int64
            targets: token ids.  # [tokens] int64

        Returns:
            [tokens] float32
        """
        return _TokenLogprobs.apply(hidden, self.weight, self.bias, predictor_of, targets)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        predictor_of: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        total = hidden.new_full((len(hidden),), -torch.inf, dtype=_precision(hidden))
        wanted = hidden.new_zeros((len(targets),), dtype=_precision(hidden))
        for rows in _row_tiles(hidden):
            of_rows = _targets_of(rows, predictor_of)
            row, target = predictor_of[of_rows] - rows.start, targets[of_rows]
            found = wanted[of_rows]
            for columns in _column_tiles(hidden, weight):
                logits = _logits(hidden[rows], weight, bias, columns)
                total[rows] = torch.logaddexp(total[rows], logits.logsumexp(dim=1))
                inside, column = _columns_of(target, columns)
                found = torch.where(inside, logits[row, column], found)
            wanted[of_rows] = found
        ctx.save_for_backward(hidden, weight, bias, predictor_of, targets, total)
        return wanted - total[predictor_of]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, predictor_of, targets, total = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad = gradients[0]
        of_hidden = torch.empty_like(hidden) if needs_hidden else None
        of_weight = torch.zeros_like(weight, dtype=_precision(hidden)) if needs_weight else None
        of_bias = torch.zeros_like(bias, dtype=_precision(hidden)) if needs_bias else None
        per_row = torch.zeros_like(total).index_add_(0, predictor_of, grad)  # Σ of a hidden state's targets
        for rows in _row_tiles(hidden):
            of_rows = _targets_of(rows, predictor_of)
            row, target = predictor_of[of_rows] - rows.start, targets[of_rows]
            sum_of_rows = hidden.new_zeros((rows.stop - rows.start, hidden.shape[1]), dtype=_precision(hidden))
            for columns in _column_tiles(hidden, weight):
                # ∂/∂logits of Σ g (logit[target] − lse) is g at the target − (Σ g) softmax
                logits = _logits(hidden[rows], weight, bias, columns)
                slope = logits.sub_(total[rows, None]).exp_().mul_(-per_row[rows, None])
                inside, column = _columns_of(target, columns)
                slope.index_put_((row, column), torch.where(inside, grad[of_rows], 0), accumulate=True)
                if of_bias is not None:
                    of_bias[columns] += slope.sum(dim=0)
                slope = slope.to(hidden.dtype)
                _add_product(sum_of_rows, slope, weight[columns])
                if of_weight is not None:
                    _add_product(of_weight[columns], slope.T, hidden[rows])
            if of_hidden is not None:
                of_hidden[rows] = sum_of_rows
        return of_hidden, _rounded(of_weight, weight), _rounded(of_bias, bias), None, None


def _precision(hidden: torch.Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _rounded(gradient: torch.Tensor | None, parameter: torch.Tensor | None) -> torch.Tensor | None:
    """Convert a gradient to its parameter's precision, rounded once after all tiles are summed."""
    return None if gradient is None or parameter is None else gradient.to(parameter.dtype)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:  # 16-bit factors are summed in float32
        total.add_(left @ right)


def _height(hidden: torch.Tensor) -> int:
    """Return the hidden states per tile: at most a quarter of them."""
    return max(1, min(_TOKENS_OF_A_TILE, (len(hidden) + 3) // 4))


def _row_tiles(hidden: torch.Tensor) -> Iterator[slice]:
    height = _height(hidden)
    for start in range(0, len(hidden), height):
        yield slice(start, min(start + height, len(hidden)))


def _column_tiles(hidden: torch.Tensor, weight: torch.Tensor) -> Iterator[slice]:
    """Yield parts of the vocabulary such that a tile's logits take an eighth of the memory of the hidden states."""
    smallest = _SMALLEST_TILE_ON_GPU if hidden.is_cuda else _SMALLEST_TILE
    width = max(hidden.numel() // 8, smallest) // _height(hidden)
    for start in range(0, len(weight), width):
        yield slice(start, min(start + width, len(weight)))


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, columns: slice) -> torch.Tensor:
    """Compute one tile in the model's precision, as the model itself does, and convert it to float32."""
    part = None if bias is None else bias[columns]
    return nn.functional.linear(hidden, weight[columns], part).to(_precision(hidden))


def _targets_of(rows: slice, predictor_of: torch.Tensor) -> torch.Tensor:
    """Return the targets that a tile's hidden states predict.  # [targets of the tile] int64."""
    return ((predictor_of >= rows.start) & (predictor_of < rows.stop)).nonzero().flatten()


def _columns_of(target: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whether each target lies in the tile, and its column there (any where it does not)."""
    inside = (target >= columns.start) & (target < columns.stop)
    return inside, torch.where(inside, target - columns.start, 0)
