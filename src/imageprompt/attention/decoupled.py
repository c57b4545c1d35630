"""Text attention plus the sum of scale x image attention: pure functions that know no policy.

Symbols (arXiv 2308.06721, section 3.2): Z = Attention(Q, K, V) + scale * Attention(Q, K', V').
Shapes: B batch, H heads, Q query positions, T text tokens, N image tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""`(q [B,H,Q,D], k [B,H,T,D], v [B,H,T,D], additive mask or None) -> [B,H,Q,D]`."""

KeyValue = tuple[Tensor, Tensor]
"""K' and V' of a site."""


@dataclass(frozen=True)
class ImageTerm:
    """One reference's share: K', V' [B, H, N, D], its weight and where in the picture it acts.

    `scale` is a tensor (0-dim, or anything that broadcasts to [B, H, Q, D]), so that changing its
    value never recompiles a graph. `mask` [1 or B, 1, Q, 1] holds weights in 0..1.
    """

    key: Tensor
    value: Tensor
    scale: Tensor
    mask: Tensor | None = None


def fused_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v by torch's fused kernel; what diffusers uses by default."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def decoupled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    images: Sequence[ImageTerm] = (),
    *,
    mask: Tensor | None = None,
    kernel: Kernel = fused_kernel,
) -> Tensor:
    """Z = Attention(q, k, v) + sum of scale * mask * Attention(q, k', v'); returns [B, H, Q, D].

    `mask` is the text's own additive attention mask; image tokens are never masked by it. One
    multiply-add per image term: a term with scale 0 leaves Z as it was, to the bit.
    """
    z = kernel(q, k, v, mask)
    for term in images:
        weight = term.scale if term.mask is None else term.scale * term.mask
        z = torch.addcmul(z, kernel(q, term.key, term.value, None), weight)
    return z


def scaled_pair(key: Tensor, value: Tensor, scale: Tensor, *, mean: bool) -> KeyValue:
    """K' and V' [B, H, N, D] multiplied by a scale, instead of the result; `controls.scaling`.

    With `mean` it is V's mean over the tokens alone that is multiplied: (V - mu) + scale * mu.
    """
    scale = scale.to(key.dtype)
    if not mean:
        return key * scale, value * scale
    mu = value.mean(dim=2, keepdim=True)
    return key * scale, (value - mu) + mu * scale


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, H*D] -> [B, H, L, D] (a view)."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, L, D] -> [B, L, H*D]."""
    return x.transpose(1, 2).flatten(2)
