"""Attention over packed rows: each prompt attends to itself, each output to its prompt and to itself.

Masked blocks are never computed. Fused kernels, which return the log-sum-exp of each query's scores, compute

1. every segment's causal attention to itself: a prompt's once for any number of outputs;
2. the outputs' queries against their prompt's keys, not causal.

An output's two parts are merged by their log-sum-exps. A kernel's own backward pass, given the *merged* result and the
*merged* log-sum-exp, yields each block's exact gradient (the identity that ring attention rests on: the weights
exp(score − lse) and the term rowsum(dO ∘ O) are those of the whole softmax).
"""

from types import ModuleType
from typing import Any

import torch

from brain_align.common.nn.prefix import attention_cpu, attention_cuda
from brain_align.common.nn.prefix.packing import Layout


def prefix_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float
) -> torch.Tensor:
    """Attend within a packed row: query, key, value and result are [t, heads, d].

    Heads of key and value are repeated already where several queries share one.
    """
    return _PrefixAttention.apply(query, key, value, layout, scale)


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    """Return the reason why there is no kernel for such tensors; None where there is one."""
    if device.type == "cuda":
        return attention_cuda.unsupported(device, dtype, head_dim)
    return None if device.type == "cpu" else f"there is no attention kernel for {device.type}"


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float
    ) -> torch.Tensor:
        out, lse = _kernels(query).forward(query, key, value, layout, scale)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors  # query, key, value, out, lse
        return *_kernels(saved[0]).backward(gradients[0], saved, ctx.layout, ctx.scale), None, None


def _kernels(tensor: torch.Tensor) -> ModuleType:
    return attention_cuda if tensor.is_cuda else attention_cpu
