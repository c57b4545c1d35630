"""The projector that knows the timestep: a resampler modulated by it (InstantX for SD3.5).

Parameter names are those of the published file. Shapes as in projectors.py.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from imageprompt.projectors import Resampler, ResamplerLayer

LONGEST_PERIOD = 10_000
MODULATIONS = 4  # shift and scale, before attention and before the MLP


class TimeEmbedding(nn.Module):
    """Timesteps [B] -> [B, C]: cosines and sines, then an MLP."""

    def __init__(self, time_width: int, width: int) -> None:
        super().__init__()
        self.time_width = time_width
        self.linear_1 = nn.Linear(time_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.time_width // 2
        steps = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
        angles = timestep.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * steps)
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.linear_1.weight.dtype)
        embedding: Tensor = self.linear_2(nn.functional.silu(self.linear_1(waves)))
        return embedding


class TimeResamplerLayer(ResamplerLayer):
    """Attention and feed-forward whose normed inputs are shifted and scaled by the timestep."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.append(nn.Sequential(nn.SiLU(), nn.Linear(width, MODULATIONS * width)))

    def modulated(self, features: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        """The latents [B, N, C] after this layer; `time` is the embedded timestep [B, C]."""
        attention, mlp, modulation = cast(tuple[Any, Any, Any], tuple(self))
        shift, scale, mlp_shift, mlp_scale = modulation(time)[:, None].chunk(MODULATIONS, dim=-1)
        normed = attention.norm2(latents) * (1 + scale) + shift
        latents = latents + attention.attend(attention.norm1(features), normed)
        normed = mlp[0](latents) * (1 + mlp_scale) + mlp_shift
        out: Tensor = latents + mlp[1:](normed)
        return out


class TimeResampler(Resampler):
    """Patch features [B, L, F] and timesteps [B] -> N tokens [B, N, W]."""

    def __init__(
        self,
        feature_width: int,
        text_width: int,
        tokens: int,
        *,
        depth: int,
        heads: int,
        width: int,
        time_width: int,
    ) -> None:
        super().__init__(feature_width, text_width, tokens, depth=0, heads=heads, width=width)
        self.layers = nn.ModuleList(TimeResamplerLayer(width, heads) for _ in range(depth))
        self.time_embedding = TimeEmbedding(time_width, width)

    def forward(self, features: Tensor, timestep: Tensor) -> Tensor:  # type: ignore[override]
        time = self.time_embedding(timestep)
        features = self.proj_in(features) + time[:, None]
        latents = self.latents.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer.modulated(features, latents, time)  # type: ignore[operator]
        tokens: Tensor = self.norm_out(self.proj_out(latents))
        return tokens
