"""The blocks of `prefix_attention` on CPUs, by ATen's fused kernel, which does not support variable lengths.

Prompts, and outputs against their prompt, are slices of the row. The outputs' attention to themselves is one batch,
padded to the longest output; outputs are short, so little is wasted.

16-bit queries, keys and values are converted to float32: there the kernel's backward pass is two to three times as fast
on blocks of this size, and its parts are merged unrounded.
"""

import torch

from brain_align.common.nn.prefix.packing import Layout

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Row = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Query, key and value of a packed row, each [t, heads, d]; or their gradients."""


def forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result [t, heads, d] and its log-sum-exp [t, heads] in float32 (float64 for float64)."""
    row = (_widened(query), _widened(key), _widened(value))
    out = torch.empty(query.shape, dtype=row[0].dtype)
    lse = torch.empty(query.shape[:2], dtype=row[0].dtype)
    for group in layout.groups:
        prompt = group.prompt_slice
        out[prompt], lse[prompt] = _attend(row, prompt, prompt, scale, causal=True)
    if not len(layout.output_places):
        return out.to(query.dtype), lse
    padded = [_padded(tensor, layout) for tensor in row]
    own, own_lse = _forward(*padded, is_causal=True, scale=scale)  # [outputs, heads, longest, d]
    real = ~layout.is_padding
    out[layout.output_places] = own.transpose(1, 2)[real]
    lse[layout.output_places] = own_lse.transpose(1, 2)[real]
    for group in layout.groups:
        if not group.outputs:
            continue
        outputs = group.outputs_slice
        seen, seen_lse = _attend(row, outputs, group.prompt_slice, scale, causal=False)
        _merge(out[outputs], lse[outputs], seen, seen_lse)
    return out.to(query.dtype), lse


def backward(grad: torch.Tensor, saved: tuple[torch.Tensor, ...], layout: Layout, scale: float) -> Row:
    """Return the gradients of query, key and value, each [t, heads, d], from those and `forward`'s results."""
    query, key, value, out, lse = saved
    row, result = (_widened(query), _widened(key), _widened(value)), (_widened(grad), _widened(out), lse)
    gradients = (torch.empty_like(row[0]), torch.empty_like(row[1]), torch.empty_like(row[2]))
    if len(layout.output_places):
        for total, part in zip(gradients, _own_backward(row, result, layout, scale), strict=True):
            total[layout.output_places] = part
    for group in layout.groups:
        prompt, outputs = group.prompt_slice, group.outputs_slice
        own = _attend_backward(row, result, prompt, prompt, scale, causal=True)
        for total, part in zip(gradients, own, strict=True):
            total[prompt] = part
        if group.outputs:
            seen = _attend_backward(row, result, outputs, prompt, scale, causal=False)
            for total, part, places in zip(gradients, seen, (outputs, prompt, prompt), strict=True):
                total[places] += part
    of_query, of_key, of_value = (total.to(query.dtype) for total in gradients)
    return of_query, of_key, of_value


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """Convert to float32 at least, and lay out place by place, so that places are copied as one."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).contiguous()


def _padded(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Rearrange [t, heads, …] to all outputs as a padded batch: [outputs, heads, longest, …]."""
    places = layout.padded_outputs
    return tensor.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


def _merge(out: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, more_lse: torch.Tensor) -> None:
    """Merge attention to more keys into `out` [..., d] and `lse` [...], in place."""
    total = torch.logaddexp(lse, more_lse)
    weight = (lse - total).exp()[..., None]
    more_weight = (more_lse - total).exp()[..., None]
    out.mul_(weight).add_(more.mul_(more_weight))
    lse.copy_(total)


def _block(row: Row, queries: slice, keys: slice) -> Row:
    """Return a block's query, key and value in the kernel's layout: [1, heads, tokens, d]."""
    query, key, value = row
    return _batch(query[queries]), _batch(key[keys]), _batch(value[keys])


def _batch(tensor: torch.Tensor) -> torch.Tensor:
    """Rearrange [tokens, heads, …] to [1, heads, tokens, …]."""
    return tensor.transpose(0, 1)[None]


def _attend(row: Row, queries: slice, keys: slice, scale: float, *, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = _forward(*_block(row, queries, keys), is_causal=causal, scale=scale)
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def _attend_backward(
    row: Row, result: Row, queries: slice, keys: slice, scale: float, *, causal: bool
) -> list[torch.Tensor]:
    """Return the gradients that one block contributes to its query, key and value, each [tokens, heads, d]."""
    grad, out, lse = (_batch(tensor[queries]) for tensor in result)
    parts = _backward(grad, *_block(row, queries, keys), out, lse, 0.0, causal, scale=scale)
    return [part[0].transpose(0, 1) for part in parts]


def _own_backward(row: Row, result: Row, layout: Layout, scale: float) -> list[torch.Tensor]:
    """Return the gradients from the outputs' attention to themselves, each [output tokens, heads, d]."""
    padded = [_padded(tensor, layout) for tensor in row]
    grad, out, lse = (_padded(tensor, layout) for tensor in result)
    grad.transpose(1, 2)[layout.is_padding] = 0  # the repeated place counts once
    parts = _backward(grad, *padded, out, lse, 0.0, True, scale=scale)
    return [part.transpose(1, 2)[~layout.is_padding] for part in parts]
