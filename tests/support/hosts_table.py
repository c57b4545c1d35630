"""Tiny denoisers, one for each shape of base in the wild, and random adapter files that fit them.

A case is the architecture of a real base with smaller widths. Everything that distinguishes bases
is preserved: order of blocks, depth of transformers, list of heads, linear projections, text
projection, motion modules. Nothing here imports imageprompt, so references are independent of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from copies import Template
from peer import StateDict, random_adapter, random_tensor, resampler_state


def _unet(**config: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**{"norm_num_groups": 4, "sample_size": 8, **config})


def _motion_unet(**config: Any) -> nn.Module:
    from diffusers import UNetMotionModel

    return UNetMotionModel(**{"norm_num_groups": 4, "sample_size": 8, **config})


_SD_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_SDXL_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
_SDXL_TINY: dict[str, Any] = {
    **_SDXL_BLOCKS,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 8),
    "cross_attention_dim": 40,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24 + 6 * 8,
}


@dataclass(frozen=True, kw_only=True)
class HostCase:
    """One tiny denoiser: how to build it and which inputs it takes."""

    name: str
    config: dict[str, Any]
    build: Callable[..., nn.Module] = _unet
    cross_attention_dim: int  # what the caller passes as encoder_hidden_states
    frames: int = 0  # > 0: a motion UNet, sample [B, C, frames, H, W]
    pooled: int = 0  # > 0: SDXL's added text_embeds and time_ids
    size: int = 8
    channels: int = 4
    sites: int = 0  # cross-attention layers, counted by hand

    @property
    def cross_dim(self) -> int:
        """Width of the tokens that the sites read."""
        return int(self.config["cross_attention_dim"])

    def unet(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A denoiser with random weights, the same for the same seed; built once, then copied."""
        if torch.empty(0).device.type != "cpu":  # as a test's `with torch.device("meta")` wants it
            return self._built(seed, dtype)
        key = (id(self), seed, dtype)
        if key not in _templates:
            _templates[key] = self, Template(self._built(seed, dtype))
        return cast(nn.Module, _templates[key][1].copy())

    def _built(self, seed: int, dtype: torch.dtype) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build(**self.config)
        _stir(model, seed)
        return (model if dtype is torch.float32 else model.to(dtype)).eval()

    def inputs(
        self, batch: int, *, seed: int = 1, dtype: torch.dtype = torch.float32, text_tokens: int = 7
    ) -> dict[str, Any]:
        """Keyword arguments of one forward call; every text differs; the latents of an even
        batch are two equal halves, as guidance stacks them."""
        gen = torch.Generator().manual_seed(seed)
        frames = (self.frames,) if self.frames else ()
        shape = (batch, self.channels, *frames, self.size, self.size)
        text = torch.randn(batch, text_tokens, self.cross_attention_dim, generator=gen).to(dtype)
        made: dict[str, Any] = {
            "sample": _guided(torch.randn(shape, generator=gen).to(dtype)),
            "timestep": torch.tensor(421),
            # AnimateDiff's pipelines repeat the text for every frame
            "encoder_hidden_states": text.repeat_interleave(max(self.frames, 1), dim=0),
        }
        if self.pooled:
            made["added_cond_kwargs"] = {
                "text_embeds": torch.randn(batch, self.pooled, generator=gen).to(dtype),
                "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(batch, 1).to(dtype),
            }
        return made

    def read(self, unet: nn.Module, inputs: dict[str, Any], **more: Any) -> Tensor:
        """The denoiser's output, [B, C, (frames,) H, W]."""
        with torch.no_grad():
            return unet(**inputs, **more).sample


_templates: dict[tuple[int, int, torch.dtype], tuple[HostCase, Template]] = {}
"""The case is kept too, so that its id stays its own."""


def _guided(latents: Tensor) -> Tensor:
    half, odd = divmod(len(latents), 2)
    return latents if odd else latents[:half].repeat(2, *[1] * (latents.ndim - 1))


def _stir(model: nn.Module, seed: int) -> None:
    """Randomise layers that start at zero or one, so that no zero hides a mistake."""
    gen = torch.Generator().manual_seed(1000 + seed)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim == 1 or not parameter.detach().any():
            noise = torch.randn(parameter.shape, generator=gen) * 0.1
            parameter.data.add_(noise)
        if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
            parameter.data.mul_(2.0)  # a softmax that is far from uniform


CASES: dict[str, HostCase] = {
    case.name: case
    for case in (
        HostCase(
            name="sd15",
            config={
                **_SD_BLOCKS,
                "block_out_channels": (16, 32, 32, 32),
                "layers_per_block": 2,
                "attention_head_dim": 4,
                "cross_attention_dim": 24,
            },
            cross_attention_dim=24,
            sites=16,
        ),
        HostCase(
            name="sd2",
            config={
                **_SD_BLOCKS,
                "block_out_channels": (16, 32, 64, 64),
                "layers_per_block": 2,
                "attention_head_dim": (2, 4, 8, 8),
                "cross_attention_dim": 32,
                "use_linear_projection": True,
                "upcast_attention": True,
            },
            cross_attention_dim=32,
            sites=16,
        ),
        HostCase(
            name="sdxl",
            config=_SDXL_TINY,
            cross_attention_dim=40,
            pooled=24,
            sites=2 * 1 + 2 * 2 + 3 * 2 + 3 * 1 + 2,
        ),
        HostCase(
            name="kolors",
            config={
                **_SDXL_TINY,
                "encoder_hid_dim": 56,
                "encoder_hid_dim_type": "text_proj",
            },
            cross_attention_dim=56,
            pooled=24,
            sites=17,
        ),
        HostCase(
            name="motion",
            build=_motion_unet,
            config={
                "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
                "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
                "block_out_channels": (16, 32),
                "layers_per_block": 1,
                "num_attention_heads": 4,
                "motion_num_attention_heads": 2,
                "cross_attention_dim": 24,
            },
            cross_attention_dim=24,
            frames=3,
            sites=1 + 2 + 1,
        ),
        HostCase(
            name="tiny",
            config={
                "down_block_types": ("CrossAttnDownBlock2D",) * 2,
                "up_block_types": ("CrossAttnUpBlock2D",) * 2,
                "block_out_channels": (32, 48),
                "layers_per_block": 1,
                "attention_head_dim": 4,
                "cross_attention_dim": 32,
                "in_channels": 16,
                "out_channels": 16,
            },
            cross_attention_dim=32,
            channels=16,
            sites=2 + 4 + 1,
        ),
    )
}


SMALLEST = HostCase(
    name="smallest",
    config={
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "block_out_channels": (16,),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
    },
    cross_attention_dim=32,
    sites=1 + 2 + 1,
)
"""A site in every part of the denoiser and nothing more, for `torch.compile`: it takes seconds per
level."""

ONE_SITE = replace(
    SMALLEST,
    name="one-site",
    config=SMALLEST.config
    | {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
    sites=1,
)
"""The same with its middle site alone, where what is compiled says enough there."""


# ── adapter files ────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, kw_only=True)
class AdapterCase:
    """One kind of adapter file at tiny size."""

    variant: str
    feature: int = 20  # width of the encoder feature that the projector reads
    tokens: int = 4
    depth: int = 4
    heads: int = 1
    width: int = 48  # inside the Resampler
    sequence: int = 9  # positions of the encoder's hidden state
    extra: dict[str, Any] = field(default_factory=dict)

    def image_proj(self, out: int, gen: torch.Generator) -> dict[str, Tensor]:
        """The projector's weights for tokens of width `out`."""
        if self.variant == "base":
            return {
                "proj.weight": random_tensor(gen, self.tokens * out, self.feature),
                "proj.bias": random_tensor(gen, self.tokens * out),
                "norm.weight": 1 + random_tensor(gen, out),
                "norm.bias": random_tensor(gen, out),
            }
        if self.variant == "full":
            return {
                "proj.0.weight": random_tensor(gen, self.feature, self.feature),
                "proj.0.bias": random_tensor(gen, self.feature),
                "proj.2.weight": random_tensor(gen, out, self.feature),
                "proj.2.bias": random_tensor(gen, out),
                "proj.3.weight": 1 + random_tensor(gen, out),
                "proj.3.bias": random_tensor(gen, out),
            }
        return resampler_state(
            gen,
            feature=self.feature,
            width=self.width,
            heads=self.heads,
            depth=self.depth,
            tokens=self.tokens,
            out=out,
        )

    def features(self, count: int, *, seed: int = 5) -> Tensor:
        """Random encoder features of `count` pictures: [n, E], or [n, S, H] for hidden states."""
        gen = torch.Generator().manual_seed(seed)
        if self.variant == "base":
            return torch.randn(count, self.feature, generator=gen)
        return torch.randn(count, self.sequence, self.feature, generator=gen)

    def null_features(self) -> Tensor:
        """Features of the null picture, [1, ...]: zeros for base, some hidden states for others."""
        if self.variant == "base":
            return torch.zeros(1, self.feature)
        return self.features(1, seed=99)


ADAPTERS: dict[str, AdapterCase] = {
    "base": AdapterCase(variant="base"),
    "plus": AdapterCase(variant="plus", tokens=6),
    # 257 positions because diffusers splits at that number, whatever the file says
    "full": AdapterCase(variant="full", tokens=257, sequence=257),
}


def adapter_state(
    unet: nn.Module, case: AdapterCase, cross_dim: int, *, seed: int = 3
) -> StateDict:
    """A whole random adapter for `unet`, both halves under the standard file's keys."""
    gen = torch.Generator().manual_seed(seed)
    return random_adapter(unet, case.image_proj(cross_dim, gen), cross_dim, seed=seed + 1)
