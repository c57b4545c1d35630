"""Text attention plus scale x image attention: pure functions, without any policy.

Symbols (arXiv 2308.06721, section 3.2): Z = Attention(Q, K, V) + scale * Attention(Q, K', V').
Shapes: B batch, H heads, Q query positions, T text tokens, N image tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""`(q [B,H,Q,D], k [B,H,T,D], v [B,H,T,D], additive mask or None) -> [B,H,Q,D]`."""

KeyValue = tuple[Tensor, Tensor]
"""K' and V' of one site."""


@dataclass(frozen=True)
class ImageTerm:
    """What one image prompt adds at a site: K', V' [B, H, N, D], a weight and a region.

    `scale` is a tensor (0-dim, or anything that broadcasts to [B, H, Q, D]), so a new value never
    recompiles a graph. `mask` [1 or B, 1, Q, 1] holds weights from 0 to 1. In exported graphs a
    term stands for R prompts: K', V' [B, R, H, N, D], scale [B, R, 1, Q, 1], no mask.
    """

    key: Tensor
    value: Tensor
    scale: Tensor
    mask: Tensor | None = None
    norms: tuple[Tensor, Tensor] | None = None
    """Weights [D] of the RMS norms that q and k of the rows get where they attend to one another
    once more, beside k' (InstantX on SD3.5)."""


def fused_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v with torch's fused kernel, the default of diffusers."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def decoupled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    image_terms: Sequence[ImageTerm] = (),
    *,
    mask: Tensor | None = None,
    kernel: Kernel = fused_kernel,
) -> Tensor:
    """Z = Attention(q, k, v) + sum of scale * mask * Attention(q, k', v'); returns [B, H, Q, D].

    `mask` is the additive attention mask of the text; it never applies to image tokens. Each image
    term is one multiply-add, so a term with scale 0 leaves Z unchanged, bit for bit.
    """
    z = kernel(q, k, v, mask)
    for term in image_terms:
        if term.key.ndim == 5:
            z = z + _attention_of_several(q, term, kernel)
            continue
        weight = term.scale if term.mask is None else term.scale * term.mask
        z = torch.addcmul(z, kernel(q, term.key, term.value, None), weight).to(z.dtype)
    return z


def image_attention(q: Tensor, image_terms: Sequence[ImageTerm]) -> Tensor | None:
    """The sum of scale * mask * Attention(q, k', v') alone, [B, H, Q, D]; None without a term."""
    total = None
    for term in image_terms:
        if term.key.ndim == 5:
            added = _attention_of_several(q, term, fused_kernel)
        else:
            weight = term.scale if term.mask is None else term.scale * term.mask
            added = fused_kernel(q, term.key, term.value, None) * weight.to(q.dtype)
        total = added if total is None else total + added
    return total


def _attention_of_several(q: Tensor, term: ImageTerm, kernel: Kernel) -> Tensor:
    """The sum over R prompts of scale * Attention(q, k', v'), [B, H, Q, D].

    They stand beside the heads, so one call serves any number of them.
    """
    prompts, heads = term.key.shape[1:3]
    queries = q.unsqueeze(1).expand(-1, prompts, -1, -1, -1).flatten(1, 2)
    attended = kernel(queries, term.key.flatten(1, 2), term.value.flatten(1, 2), None)
    by_prompt = attended.view(-1, prompts, heads, *attended.shape[2:])
    return (by_prompt * term.scale.to(q.dtype)).sum(1)


def attention_among_rows(
    q: Tensor, k: Tensor, v: Tensor, image_terms: Sequence[ImageTerm], eps: float
) -> Tensor | None:
    """The sum of scale * mask * Attention(norm(q), [norm(k); k'], [v; v']); None without a term.

    q, k, v [B, H, Q, D] are those of the picture's rows, as projected.
    """
    total = None
    for term in image_terms:
        assert term.norms is not None
        norm_q, norm_k = (weight.to(q.dtype) for weight in term.norms)
        queries = norm_heads(q, norm_q, eps)
        keys = torch.cat((norm_heads(k, norm_k, eps), term.key), dim=2)
        whole = replace(term, key=keys, value=torch.cat((v, term.value), dim=2))
        added = image_attention(queries, [whole])
        total = added if total is None or added is None else total + added
    return total


def scale_key_value(key: Tensor, value: Tensor, scale: Tensor, *, mean: bool) -> KeyValue:
    """Scale K' and V' [B, H, N, D] instead of the attention result (see `Controls.scaling`).

    With `mean`, only the mean of V over the tokens is scaled: (V - mu) + scale * mu.
    """
    scale = scale.to(key.dtype)
    if not mean:
        return key * scale, value * scale
    mu = value.mean(dim=2, keepdim=True)
    return key * scale, (value - mu) + mu * scale


def norm_heads(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The RMS norm of every head of `split_heads(...)` [B, H, L, D], in the memory order it has."""
    return F.rms_norm(x.transpose(1, 2), x.shape[-1:], weight, eps).transpose(1, 2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, H*D] -> [B, H, L, D] (a view)."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, L, D] -> [B, L, H*D]."""
    return x.transpose(1, 2).flatten(2)
