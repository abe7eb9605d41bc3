"""The blocks of `prefix_attention` on GPUs: flash attention over variable lengths, two calls per layer.

In the first call every prompt and every output is a sequence. In the second, all outputs of a group are the queries of
one sequence, and their prompt has its keys.
"""

from functools import lru_cache
from itertools import accumulate

import torch

from brain_align.common.nn.prefix.packing import Layout

_LARGEST_HEAD = 256
_OLDEST_CAPABILITY = (8, 0)

Tensors = tuple[torch.Tensor, ...]


class _Lengths:
    """Sequence lengths in the kernel's form: cumulative sums, and the longest."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        self.longest = max(lengths)


class _Blocks:
    """A layout's two calls on one device."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        answered = [group for group in layout.groups if group.outputs]
        self.segments = _Lengths([n for group in layout.groups for n in (group.prompt, *group.outputs)], device)
        self.has_outputs = bool(answered)
        if answered:
            self.queries = _Lengths([sum(group.outputs) for group in answered], device)
            self.keys = _Lengths([group.prompt for group in answered], device)
            self.output_places = layout.output_places.to(device)
            prompts = [torch.arange(group.start, group.start + group.prompt) for group in answered]
            self.prompt_places = torch.cat(prompts).to(device)


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    """Return the reason why there is no kernel for such tensors; None where there is one."""
    if torch.cuda.get_device_capability(device) < _OLDEST_CAPABILITY:
        return f"flash attention needs a GPU of compute capability {'.'.join(map(str, _OLDEST_CAPABILITY))} or more"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"flash attention computes in bfloat16 or float16, not in {str(dtype).removeprefix('torch.')}"
    if head_dim is not None and (head_dim > _LARGEST_HEAD or head_dim % 8):
        return f"flash attention supports head dimensions up to {_LARGEST_HEAD} that 8 divides, not {head_dim}"
    return None


def forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result [t, heads, d] and its log-sum-exp [t, heads] in float32."""
    blocks = _blocks(layout, query.device)
    out, lse = _attend(query, key, value, blocks.segments, blocks.segments, scale, causal=True)
    if not blocks.has_outputs:
        return out, lse
    places, prompts = blocks.output_places, blocks.prompt_places
    seen, seen_lse = _attend(
        query[places], key[prompts], value[prompts], blocks.queries, blocks.keys, scale, causal=False
    )
    total = torch.logaddexp(lse[places], seen_lse)
    weights = [(part - total).exp()[..., None] for part in (lse[places], seen_lse)]
    out[places] = (out[places] * weights[0] + seen * weights[1]).to(out.dtype)
    lse[places] = total
    return out, lse


def backward(grad: torch.Tensor, saved: Tensors, layout: Layout, scale: float) -> Tensors:
    """Return the gradients of query, key and value, each [t, heads, d], from those and `forward`'s results."""
    query, key, value, out, lse = saved
    blocks = _blocks(layout, query.device)
    gradients = _attend_backward((grad, *saved), blocks.segments, blocks.segments, scale, causal=True)
    if not blocks.has_outputs:
        return gradients
    places, prompts = blocks.output_places, blocks.prompt_places
    block = (grad[places], query[places], key[prompts], value[prompts], out[places], lse[places])
    parts = _attend_backward(block, blocks.queries, blocks.keys, scale, causal=False)
    for total, part, where in zip(gradients, parts, (places, prompts, prompts), strict=True):
        total.index_add_(0, where, part)
    return gradients


@lru_cache(maxsize=1)
def _blocks(layout: Layout, device: torch.device) -> _Blocks:
    """Return a layout's blocks, cached because every layer needs those of the same row."""
    return _Blocks(layout, device)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: _Lengths,
    keys: _Lengths,
    scale: float,
    *,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        queries.ends,
        keys.ends,
        queries.longest,
        keys.longest,
        0.0,
        causal,
        False,
        scale=scale,
    )
    return out, lse.transpose(0, 1)  # the kernel's is [heads, t]


def _attend_backward(block: Tensors, queries: _Lengths, keys: _Lengths, scale: float, *, causal: bool) -> Tensors:
    grad, query, key, value, out, lse = (tensor.contiguous() for tensor in block)
    # Without dropout nothing reads the random state.
    random_state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    return torch.ops.aten._flash_attention_backward(
        grad,
        query,
        key,
        value,
        out,
        lse.transpose(0, 1).contiguous(),
        queries.ends,
        keys.ends,
        queries.longest,
        keys.longest,
        0.0,
        causal,
        random_state,
        torch.empty(0, device=query.device),
        scale=scale,
    )
