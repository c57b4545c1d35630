"""The frozen denoiser's linear layers in int8: half the memory of bfloat16.

torchao's weight-only layers keep a dequantised copy of each weight for the backward pass, as much
memory as they save; these make it again there. One scale per output row (absolute maximum / 127) is
applied to the result, so the product itself is with whole numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Product(torch.autograd.Function):
    """x [..., in] times whole numbers [out, in] -> [..., out]; saves nothing for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor) -> Tensor:
        ctx.whole, ctx.dtype = whole, x.dtype
        return x @ whole.to(x.dtype).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return (grad @ ctx.whole.to(grad.dtype)).to(ctx.dtype), None


class Int8Linear(nn.Module):
    """A frozen linear layer whose weight [out, in] is stored as int8 with a scale per row."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("whole", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = layer.bias
        self.whole: Tensor
        self.scale: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight that is computed with, float32."""
        return self.whole.float() * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x, self.whole)  # type: ignore[no-untyped-call]
        out = product * self.scale.to(product.dtype)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def store_as_int8(denoiser: nn.Module) -> None:
    """Replace all linear layers of a frozen denoiser."""
    for module in list(denoiser.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear:
                setattr(module, name, Int8Linear(layer))


def stored_weights(module: nn.Module) -> list[Tensor]:
    """The parameters of a module, and what is stored of those in int8."""
    layers = [one for one in module.modules() if isinstance(one, Int8Linear)]
    return [*module.parameters(), *(part for one in layers for part in one.buffers())]
