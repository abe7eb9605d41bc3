"""LoRA on linear layers in two products a direction, and in the model's own precision.

PEFT keeps adapters in float32 and computes with them in float32. In a model in 16 bits that is much conversion: of
inputs, and of the adapter's output, which is scaled, added and converted back; and all of it again for the gradient.
Here W x + s·B·A x is a product and one that adds to it (`addmm`), for which A and s·B are rounded to the model's
precision in each pass, as autocast does. What is rounded is the adapter's small contribution, besides the result, which
PEFT rounds, too. The adapter's weights, their gradients' sums and the optimiser stay in float32.
"""

from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import nn
from typing_extensions import override


def fuse_adapters(model: PeftModel) -> PeftModel:
    """Compute a model's LoRA layers as this module does, in place; quantised and other special ones stay PEFT's."""
    for module in model.modules():
        if type(module) is Linear and type(module.get_base_layer()) is nn.Linear:
            module.__class__ = _AdaptedLinear
    return model


class _AdaptedLinear(Linear):
    """A PEFT layer with its parameters and names; whatever is not plain LoRA goes PEFT's way."""

    @override
    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not self._is_plain():
            return super().forward(x, *args, **kwargs)
        (adapter,) = self.active_adapters
        base = cast(nn.Linear, self.get_base_layer())
        a, b = (cast(nn.Linear, part[adapter]).weight for part in (self.lora_A, self.lora_B))
        rows = _AddAdapter.apply(x.flatten(0, -2), base.weight, base.bias, a, b, self.scaling[adapter])
        return rows.unflatten(0, x.shape[:-1])

    def _is_plain(self) -> bool:
        if self.disable_adapters or self.merged or self.lora_variant or len(self.active_adapters) != 1:
            return False
        (adapter,) = self.active_adapters
        if adapter not in self.lora_A or not isinstance(self.lora_dropout[adapter], nn.Identity):
            return False
        parameters = list(self.parameters())
        # DeepSpeed ZeRO-3 gathers the weights of modules that are called, and these are not.
        return not any(hasattr(value, "ds_id") for value in parameters) and not any(
            value.requires_grad for value in self.get_base_layer().parameters()
        )


class _AddAdapter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,  # [t, inputs]
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        down, up = a.to(rows.dtype), (b * scale).to(rows.dtype)  # [r, inputs], [outputs, r]
        inner = rows @ down.T  # [t, r]
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scale, ctx.dtypes = scale, (a.dtype, b.dtype)
        return nn.functional.linear(rows, weight, bias).addmm_(inner, up.T)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, down, up, inner = ctx.saved_tensors
        grad = gradients[0]  # [t, outputs]
        needs_rows, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        slope = grad @ up  # [t, r]
        of_rows = (grad @ weight).addmm_(slope, down) if needs_rows else None
        of_a = (slope.T @ rows).to(ctx.dtypes[0]) if needs_a else None
        of_b = (grad.T @ inner).to(ctx.dtypes[1]).mul_(ctx.scale) if needs_b else None
        return of_rows, None, None, of_a, of_b, None
