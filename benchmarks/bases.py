"""The full-size denoisers of the benchmarks: published configs, random weights.

Weights are random because cost does not depend on them. They are filled from one short random
buffer instead of the layers' own initialisers: a second or two instead of a minute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Base:
    """A published base: its denoiser's config and the inputs of one step."""

    name: str
    config: dict[str, Any]
    cross_attention_dim: int
    latent: int  # default side of the latents
    pooled: int = 0

    def inputs(
        self, batch: int, *, latent: int | None = None, dtype: torch.dtype
    ) -> dict[str, Any]:
        """Keyword arguments of one denoise step with 77 text tokens."""
        gen = torch.Generator().manual_seed(7)
        side = latent or self.latent

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=gen).to(dtype)

        made: dict[str, Any] = {
            "sample": noise(batch // 2, 4, side, side).repeat(2, 1, 1, 1),
            "timestep": torch.tensor(421),
            "encoder_hidden_states": noise(batch, 77, self.cross_attention_dim),
        }
        if self.pooled:
            made["added_cond_kwargs"] = {
                "text_embeds": noise(batch, self.pooled),
                "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]]).repeat(batch, 1),
            }
        return made


SD15 = Base(
    name="sd15",
    config={
        "sample_size": 64,
        "attention_head_dim": 8,
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
    },
    cross_attention_dim=768,
    latent=16,
)

SDXL = Base(
    name="sdxl",
    config={
        "sample_size": 128,
        "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    cross_attention_dim=2048,
    latent=32,
    pooled=1280,
)

BASES = {base.name: base for base in (SD15, SDXL)}


def meta_unet(base: Base) -> nn.Module:
    """The denoiser on the meta device, without weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**base.config)


def random_unet(base: Base, dtype: torch.dtype) -> nn.Module:
    """The denoiser with random weights of a realistic size, in evaluation mode."""
    model = meta_unet(base).to(dtype).to_empty(device="cpu")
    fill(model)
    return model.eval().requires_grad_(False)


def fill(model: nn.Module, *, seed: int = 0) -> None:
    """Write random weights of size 1/sqrt(fan in); norms stay the identity."""
    gen = torch.Generator().manual_seed(seed)
    noise = torch.randn(1_000_003, generator=gen)  # a prime, so that rows do not repeat
    norms = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.GroupNorm | nn.LayerNorm) and module.weight is not None
    }
    for number, parameter in enumerate(model.parameters()):
        if id(parameter) in norms:
            parameter.data.fill_(1.0)
        elif parameter.ndim == 1:
            parameter.data.zero_()
        else:
            start = -7919 * number % len(noise)
            source = torch.cat((noise[start:], noise[:start]))
            scaled = source[: parameter.numel()] / math.sqrt(parameter[0].numel())
            _tile(parameter.data.view(-1), scaled.to(parameter.dtype))


def _tile(target: Tensor, source: Tensor) -> None:
    whole = len(target) // len(source) * len(source)
    target[:whole].view(-1, len(source)).copy_(source.expand(whole // len(source), -1))
    target[whole:].copy_(source[: len(target) - whole])
