"""FLUX and SD3.5 transformers of several sizes with random weights, and adapters for them.

Used by `transformer_cost.py`, `gpu.py` and tests. Nothing here imports imageprompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peer import StateDict, random_tensor

SITE_NAMES = ("to_k_ip", "to_v_ip")


@dataclass(frozen=True, kw_only=True)
class Size:
    """A transformer's size, and that of its calls. `single` blocks are FLUX's alone."""

    heads: int
    head_dim: int
    blocks: int
    single: int = 0
    token_width: int
    """Width of the text's states, and of FLUX's image tokens."""
    side: int
    """Positions of the picture on a side."""
    text: int
    feature: int
    """Width of the encoder's features."""
    patches: int = 1
    tokens: int = 4
    time_width: int = 128

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


SIZES: dict[str, dict[str, Size]] = {
    "flux": {
        "tiny": Size(
            heads=2, head_dim=16, blocks=2, single=2, token_width=32, side=4, text=5, feature=24
        ),
        "large": Size(
            heads=8,
            head_dim=128,
            blocks=2,
            single=4,
            token_width=4096,
            side=16,
            text=64,
            feature=768,
        ),
        "dev": Size(
            heads=24,
            head_dim=128,
            blocks=19,
            single=38,
            token_width=4096,
            side=64,
            text=512,
            feature=768,
        ),
    },
    "sd3": {
        "tiny": Size(
            heads=2,
            head_dim=16,
            blocks=2,
            token_width=32,
            side=4,
            text=5,
            feature=24,
            patches=9,
            tokens=6,
        ),
        "large": Size(
            heads=16,
            head_dim=64,
            blocks=6,
            token_width=4096,
            side=16,
            text=64,
            feature=1152,
            patches=729,
            tokens=64,
            time_width=1280,
        ),
    },
}


def build(host: str, size: Size, *, dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    """The transformer, on the device, with normal weights that keep states of about one size."""
    import diffusers

    shape: dict[str, Any] = {
        "num_attention_heads": size.heads,
        "attention_head_dim": size.head_dim,
        "num_layers": size.blocks,
        "joint_attention_dim": size.token_width,
    }
    with torch.device("meta"):
        if host == "flux":
            rotary = size.head_dim // 8
            model: nn.Module = diffusers.FluxTransformer2DModel(
                patch_size=1,
                in_channels=64,
                num_single_layers=size.single,
                pooled_projection_dim=768,
                guidance_embeds=True,
                axes_dims_rope=[2 * rotary, 3 * rotary, 3 * rotary],
                **shape,
            )
        else:
            model = diffusers.SD3Transformer2DModel(
                sample_size=2 * size.side,
                pos_embed_max_size=2 * size.side,
                patch_size=2,
                in_channels=16,
                caption_projection_dim=size.width,
                pooled_projection_dim=2048,
                qk_norm="rms_norm",
                **shape,
            )
    positions = model.pos_embed.pos_embed.shape if host == "sd3" else None
    model = (
        (model if dtype is torch.float32 else model.to(dtype))
        .to_empty(device=device)
        .eval()
        .requires_grad_(False)
    )
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in model.named_parameters():
        if "norm" in name and weight.ndim == 1:
            weight.data.fill_(1)
        else:
            deviation = 1 / math.sqrt(weight[0].numel()) if weight.ndim > 1 else 0.02
            weight.data.normal_(0, deviation, generator=generator)
    if positions is not None:
        model.pos_embed.pos_embed.normal_(0, 0.5, generator=generator)
    return model


def inputs(
    host: str, size: Size, rows: int, *, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, Any]:
    """Keyword arguments of one call."""
    generator = torch.Generator(device).manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    shared = {"encoder_hidden_states": noise(rows, size.text, size.token_width)}
    if host == "sd3":
        latents = noise(1, 16, 2 * size.side, 2 * size.side).repeat(rows, 1, 1, 1)
        return {**shared, "hidden_states": latents, "pooled_projections": noise(rows, 2048)}
    row, column = torch.meshgrid(*(torch.arange(size.side),) * 2, indexing="ij")
    ids = torch.stack((torch.zeros_like(row), row, column), -1).flatten(0, 1)
    return {
        **shared,
        "hidden_states": noise(1, size.side**2, 64).repeat(rows, 1, 1),
        "pooled_projections": noise(rows, 768),
        "guidance": torch.full((rows,), 3.5, device=device, dtype=torch.float32),
        "img_ids": ids.to(device, dtype),
        "txt_ids": torch.zeros(size.text, 3, device=device, dtype=dtype),
    }


def at(host: str, call: dict[str, Any], time: Tensor) -> dict[str, Any]:
    """The call at a timestep (0..1000), as the host's pipeline passes it."""
    rows = call["hidden_states"].shape[0]
    if host == "sd3":
        return {**call, "timestep": time.expand(rows)}
    return {**call, "timestep": (time / 1000).expand(rows).to(call["hidden_states"].dtype)}


# ── adapters, as their files have them ──────────────────────────────────────────────────────────


def xlabs(size: Size, generator: torch.Generator) -> StateDict:
    """XLabs' adapter for FLUX."""
    projector = _linear(generator, "proj", size.tokens * size.token_width, size.feature)
    projector |= _norm("norm", size.token_width)
    sites: dict[str, Tensor] = {}
    for site in range(size.blocks):
        for name in SITE_NAMES:
            sites |= _linear(generator, f"{site}.{name}", size.width, size.token_width)
    return {"image_proj": projector, "ip_adapter": sites}


def instantx(size: Size, generator: torch.Generator, tokens: int = 128) -> StateDict:
    """InstantX's adapter for FLUX, which diffusers cannot load."""
    inner = 2 * size.feature
    projector = _linear(generator, "proj.0", inner, size.feature)
    projector |= _linear(generator, "proj.2", tokens * size.token_width, inner)
    projector |= _norm("norm", size.token_width)
    sites = {
        f"{site}.{name}.weight": random_tensor(generator, size.width, size.token_width)
        for site in range(size.blocks + size.single)
        for name in SITE_NAMES
    }
    return {"image_proj": projector, "ip_adapter": sites}


def instantx_sd3(size: Size, generator: torch.Generator) -> StateDict:
    """InstantX's adapter for SD3.5: a resampler and sites that read the timestep."""
    width = size.time_width
    projector = {"latents": random_tensor(generator, 1, size.tokens, width)}
    for name, rows, columns in (
        ("proj_in", width, size.feature),
        ("proj_out", size.width, width),
        ("time_embedding.linear_1", width, 320),
        ("time_embedding.linear_2", width, width),
    ):
        projector |= _linear(generator, name, rows, columns)
    projector |= _norm("norm_out", size.width)
    for i in range(4):
        layer = f"layers.{i}"
        for name in ("0.norm1", "0.norm2", "1.0"):
            projector |= _norm(f"{layer}.{name}", width)
        for name, rows, columns in (
            ("0.to_q", width, width),
            ("0.to_kv", 2 * width, width),
            ("0.to_out", width, width),
            ("1.1", 4 * width, width),
            ("1.3", width, 4 * width),
        ):
            projector[f"{layer}.{name}.weight"] = random_tensor(generator, rows, columns)
        projector |= _linear(generator, f"{layer}.2.1", 4 * width, width)
    sites: dict[str, Tensor] = {}
    for site in range(size.blocks):
        for name in SITE_NAMES:
            weight = random_tensor(generator, size.width, size.width)
            sites[f"{site}.{name}.weight"] = weight
        sites |= _linear(generator, f"{site}.norm_ip.linear", 2 * size.width, width)
        for name in ("norm_q", "norm_k", "norm_ip_k"):
            sites[f"{site}.{name}.weight"] = torch.ones(size.head_dim)
    return {"image_proj": projector, "ip_adapter": sites}


ADAPTERS = {"xlabs": xlabs, "instantx": instantx, "instantx-sd3": instantx_sd3}


def adapter(name: str, size: Size, *, dtype: torch.dtype, seed: int = 4) -> StateDict:
    """Random weights of a published adapter, in the shapes for this size."""
    state = ADAPTERS[name](size, torch.Generator().manual_seed(seed))
    return {part: {n: x.to(dtype) for n, x in found.items()} for part, found in state.items()}


def features(size: Size, *, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Random features of one picture: [1, F], or [1, L, F] of patches."""
    generator = torch.Generator().manual_seed(5)
    shape = (1, size.feature) if size.patches == 1 else (1, size.patches, size.feature)
    return torch.randn(shape, generator=generator).to(device, dtype)


def _linear(generator: torch.Generator, name: str, rows: int, columns: int) -> dict[str, Tensor]:
    weight = random_tensor(generator, rows, columns)
    return {f"{name}.weight": weight, f"{name}.bias": 0.02 * torch.randn(rows, generator=generator)}


def _norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


# ── diffusers' own ──────────────────────────────────────────────────────────────────────────────


def load_peer(model: Any, state: StateDict, *, scale: float = 1.0) -> None:
    """Load an adapter as diffusers does; XLabs' on FLUX, InstantX's on SD3.5."""
    weights = {
        part: {name: weight.clone() for name, weight in found.items()}
        for part, found in state.items()
    }
    model._load_ip_adapter_weights(weights, low_cpu_mem_usage=False)
    for processor in model.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale] if isinstance(processor.scale, list) else scale
    model.eval().requires_grad_(False)


def peer_embeds(host: str, found: Tensor, guided: bool) -> Any:
    """What diffusers' transformer takes as `ip_adapter_image_embeds` for one picture."""
    if host == "flux":
        return [found[:, None]]
    return torch.cat((torch.zeros_like(found), found)) if guided else found
