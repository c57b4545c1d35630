"""The projectors that turn image features into tokens: linear, MLP, resampler and perceiver.

Parameter names are those of the published files, so a state dict is the `image_proj` part of a
file. Shapes: B batch, F feature dim, L patches, N tokens, W cross-attention dim, C inner dim.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from imageprompt.core.spec import RESAMPLER_HEAD_DIM as HEAD_DIM
from imageprompt.variants.tensor_shapes import MLP_MULTIPLE, MODULATIONS

MAX_PERIOD = 10_000
"""The longest period of the sinusoids that embed a timestep."""


# ── one vector to tokens ────────────────────────────────────────────────────────────────────────


class LinearProjector(nn.Module):
    """Pooled features [B, F] -> tokens [B, N, W]: one linear layer, then LayerNorm (base)."""

    def __init__(self, feature_dim: int, cross_attention_dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(feature_dim, tokens * cross_attention_dim)
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, features: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.proj(features).unflatten(-1, (self.tokens, -1)))
        return tokens


class TokenMLP(nn.Module):
    """One vector [B, F] -> tokens [B, N, W]: an MLP to all tokens, then LayerNorm (FaceID)."""

    def __init__(
        self, feature_dim: int, cross_attention_dim: int, tokens: int, *, inner_dim: int
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Sequential(
            nn.Linear(feature_dim, inner_dim),
            nn.GELU(),
            nn.Linear(inner_dim, tokens * cross_attention_dim),
        )
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, features: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.proj(features).unflatten(-1, (self.tokens, -1)))
        return tokens


# ── patches to tokens ───────────────────────────────────────────────────────────────────────────


class MLPProjector(nn.Module):
    """Patch features [B, L, F] -> one token per patch [B, L, W] (full-face)."""

    def __init__(self, feature_dim: int, cross_attention_dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(feature_dim, feature_dim),
            nn.GELU(),
            nn.Linear(feature_dim, cross_attention_dim),
            nn.LayerNorm(cross_attention_dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        tokens: Tensor = self.proj(features)
        return tokens


class ReduxProjector(nn.Module):
    """Patch features [B, L, F] -> one token per patch [B, L, W]: an MLP with SiLU (redux)."""

    def __init__(self, feature_dim: int, cross_attention_dim: int, *, inner_dim: int) -> None:
        super().__init__()
        self.redux_up = nn.Linear(feature_dim, inner_dim)
        self.redux_down = nn.Linear(inner_dim, cross_attention_dim)

    def forward(self, features: Tensor) -> Tensor:
        tokens: Tensor = self.redux_down(nn.functional.silu(self.redux_up(features)))
        return tokens


class ResamplerAttention(nn.Module):
    """Latents attend to features and to themselves (the perceiver attention of Flamingo).

    q and k are each scaled by D^-1/4 and the softmax runs in float32 or wider, which keeps half
    precision stable; published weights rely on it.
    """

    def __init__(self, inner_dim: int, heads: int) -> None:
        super().__init__()
        inner = heads * HEAD_DIM
        self.heads = heads
        self.norm1 = nn.LayerNorm(inner_dim)
        self.norm2 = nn.LayerNorm(inner_dim)
        self.to_q = nn.Linear(inner_dim, inner, bias=False)
        self.to_kv = nn.Linear(inner_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, inner_dim, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        return self.attend(self.norm1(features), self.norm2(latents))

    def attend(self, features: Tensor, latents: Tensor) -> Tensor:
        """Attention of latents [B, N, C] over features [B, L, C], both already normalised."""
        keys, values = self.to_kv(torch.cat((features, latents), dim=1)).chunk(2, dim=-1)
        q, k, v = (self._split_heads(x) for x in (self.to_q(latents), keys, values))
        out: Tensor = self.to_out(self.attention(q, k, v).transpose(1, 2).flatten(2))
        return out

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D)) v, [B, H, N, D]."""
        root = HEAD_DIM**-0.25
        scores = (q * root) @ (k * root).transpose(-2, -1)
        precise = torch.promote_types(scores.dtype, torch.float32)
        weights: Tensor = scores.softmax(-1, dtype=precise).to(q.dtype)
        return weights @ v

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, HEAD_DIM).transpose(1, 2)


def feed_forward(inner_dim: int) -> nn.Sequential:
    """LayerNorm, then a GELU MLP without biases."""
    return nn.Sequential(
        nn.LayerNorm(inner_dim),
        nn.Linear(inner_dim, MLP_MULTIPLE * inner_dim, bias=False),
        nn.GELU(),
        nn.Linear(MLP_MULTIPLE * inner_dim, inner_dim, bias=False),
    )


class ResamplerLayer(nn.ModuleList):
    """Attention, then feed-forward, each added to the latents; `0` and `1` in files."""

    def __init__(self, inner_dim: int, heads: int) -> None:
        super().__init__((ResamplerAttention(inner_dim, heads), feed_forward(inner_dim)))

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        attention, mlp = self
        latents = latents + attention(features, latents)
        return latents + mlp(latents)  # type: ignore[no-any-return]


class Perceiver(nn.Module):
    """`depth` layers in which latents attend to patch features; subclasses supply the latents."""

    def __init__(
        self, feature_dim: int, cross_attention_dim: int, *, depth: int, heads: int, inner_dim: int
    ) -> None:
        super().__init__()
        self.proj_in = nn.Linear(feature_dim, inner_dim)
        self.proj_out = nn.Linear(inner_dim, cross_attention_dim)
        self.norm_out = nn.LayerNorm(cross_attention_dim)
        self.layers = nn.ModuleList(ResamplerLayer(inner_dim, heads) for _ in range(depth))

    def perceive(self, features: Tensor, latents: Tensor) -> Tensor:
        """Tokens [B, N, W] from features [B, L, F] and latents [B, N, C]."""
        features = self.proj_in(features)
        for layer in self.layers:
            latents = layer(features, latents)
        tokens: Tensor = self.norm_out(self.proj_out(latents))
        return tokens


class Resampler(Perceiver):
    """Patch features [B, L, F] -> N tokens [B, N, W]: a perceiver with learned latents (Plus)."""

    def __init__(
        self,
        feature_dim: int,
        cross_attention_dim: int,
        tokens: int,
        *,
        depth: int = 4,
        heads: int = 12,
        inner_dim: int = 768,
    ) -> None:
        # drawn before everything else, so that seeds keep their meaning
        latents = torch.randn(1, tokens, inner_dim) / inner_dim**0.5
        super().__init__(
            feature_dim, cross_attention_dim, depth=depth, heads=heads, inner_dim=inner_dim
        )
        self.latents = nn.Parameter(latents)

    def forward(self, features: Tensor) -> Tensor:
        return self.perceive(features, self.latents.expand(features.shape[0], -1, -1))


class FacePerceiver(nn.Module):
    """Face embedding [B, E] and patch features [B, L, F] -> tokens [B, N, W] (FaceID-plus).

    The tokens of the embedding are the latents of a perceiver. With `shortcut` (v2) they are added
    to the perceiver's result, which is multiplied by `strength`.
    """

    def __init__(
        self,
        face_dim: int,
        feature_dim: int,
        cross_attention_dim: int,
        tokens: int,
        *,
        depth: int,
        heads: int,
        inner_dim: int,
        shortcut: bool,
    ) -> None:
        super().__init__()
        self.tokens, self.shortcut = tokens, shortcut
        self.proj = nn.Sequential(
            nn.Linear(face_dim, 2 * face_dim),
            nn.GELU(),
            nn.Linear(2 * face_dim, tokens * inner_dim),
        )
        self.norm = nn.LayerNorm(inner_dim)
        self.perceiver_resampler = Perceiver(
            feature_dim, cross_attention_dim, depth=depth, heads=heads, inner_dim=inner_dim
        )

    def forward(self, face: Tensor, features: Tensor, strength: float = 1.0) -> Tensor:
        identity = self.norm(self.proj(face).unflatten(-1, (self.tokens, -1)))
        tokens = self.perceiver_resampler.perceive(features, identity)
        return identity + strength * tokens if self.shortcut else tokens


# ── patches and a timestep to tokens ────────────────────────────────────────────────────────────


class TimeEmbedding(nn.Module):
    """Timesteps [B] -> [B, C]: cosines and sines, then an MLP, as every layer adds it."""

    def __init__(self, time_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.time_dim = time_dim
        self.linear_1 = nn.Linear(time_dim, inner_dim)
        self.linear_2 = nn.Linear(inner_dim, inner_dim)

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.time_dim // 2
        steps = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
        angles = timestep.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * steps)
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.linear_1.weight.dtype)
        embedding: Tensor = self.linear_2(nn.functional.silu(self.linear_1(waves)))
        return embedding


class FusedResamplerAttention(ResamplerAttention):
    """Its softmax runs inside torch's fused kernel, in float32 or wider as well: fewer operations,
    of which a projector that runs at every step has many."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


class TimeResamplerLayer(nn.ModuleList):
    """A resampler layer whose normalised inputs are shifted and scaled by the timestep."""

    def __init__(self, inner_dim: int, heads: int) -> None:
        modulation = nn.Sequential(nn.SiLU(), nn.Linear(inner_dim, MODULATIONS * inner_dim))
        attention = FusedResamplerAttention(inner_dim, heads)
        super().__init__((attention, feed_forward(inner_dim), modulation))

    def forward(self, features: Tensor, latents: Tensor, active: Tensor) -> Tensor:
        """The latents [B, N, C] after this layer; `active` is SiLU of the embedded timestep."""
        attention, mlp, modulation = cast(tuple[Any, Any, Any], tuple(self))
        by_time = modulation[1](active)[:, None]  # SiLU is the same in every layer
        shift, scale, mlp_shift, mlp_scale = by_time.chunk(MODULATIONS, dim=-1)
        x = modulate(attention.norm2(latents), shift, scale)
        latents = latents + attention.attend(attention.norm1(features), x)
        out: Tensor = latents + mlp[1:](modulate(mlp[0](latents), mlp_shift, mlp_scale))
        return out


class TimeResampler(Resampler):
    """Patch features [B, L, F] and an embedded timestep [1 or B, C] -> N tokens [B, N, W] (InstantX
    for SD3.5)."""

    def __init__(
        self,
        feature_dim: int,
        cross_attention_dim: int,
        tokens: int,
        *,
        depth: int,
        heads: int,
        inner_dim: int,
        time_dim: int,
    ) -> None:
        super().__init__(
            feature_dim, cross_attention_dim, tokens, depth=0, heads=heads, inner_dim=inner_dim
        )
        self.layers = nn.ModuleList(TimeResamplerLayer(inner_dim, heads) for _ in range(depth))
        self.time_embedding = TimeEmbedding(time_dim, inner_dim)

    def forward(self, features: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        features = self.proj_in(features) + time[:, None]
        latents, active = self.latents.expand(features.shape[0], -1, -1), nn.functional.silu(time)
        for layer in self.layers:
            latents = layer(features, latents, active)
        tokens: Tensor = self.norm_out(self.proj_out(latents))
        return tokens
