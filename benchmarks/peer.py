"""Random adapter files in the standard layout, and diffusers' own IP-Adapter: the peer.

Used by benchmarks and tests. Nothing here imports imageprompt.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

StateDict = dict[str, dict[str, Tensor]]  # {"image_proj": {...}, "ip_adapter": {...}}


def site_ids(unet: nn.Module) -> dict[int, tuple[str, int]]:
    """File id -> (processor name, hidden width) of every cross-attention site.

    The rule of the standard format, written independently: the position among the denoiser's
    attention processors in their order (down, up, mid), without motion modules.
    """
    names = [n for n in unet.attn_processors if "motion_modules" not in n]
    found = {}
    for position, name in enumerate(names):
        if ".attn2." in name:
            attention = unet.get_submodule(name.removesuffix(".processor"))
            found[position] = (name, attention.to_q.out_features)
    return found


def random_tensor(gen: torch.Generator, *shape: int) -> Tensor:
    """Normal noise of standard deviation 1/sqrt(last dimension)."""
    return torch.randn(shape, generator=gen) / math.sqrt(shape[-1])


def resampler_state(
    gen: torch.Generator,
    *,
    feature: int,
    width: int,
    heads: int,
    depth: int,
    tokens: int,
    out: int,
    dim_head: int = 64,
) -> dict[str, Tensor]:
    """Weights of a Resampler under the standard file's names."""
    inner = heads * dim_head
    state = {
        "latents": torch.randn(1, tokens, width, generator=gen) / width**0.5,
        "proj_in.weight": random_tensor(gen, width, feature),
        "proj_in.bias": random_tensor(gen, width),
        "proj_out.weight": random_tensor(gen, out, width),
        "proj_out.bias": random_tensor(gen, out),
        "norm_out.weight": 1 + random_tensor(gen, out),
        "norm_out.bias": random_tensor(gen, out),
    }
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            state[f"layers.{i}.0.{norm}.weight"] = 1 + random_tensor(gen, width)
            state[f"layers.{i}.0.{norm}.bias"] = random_tensor(gen, width)
        state[f"layers.{i}.0.to_q.weight"] = 2 * random_tensor(gen, inner, width)
        state[f"layers.{i}.0.to_kv.weight"] = 2 * random_tensor(gen, 2 * inner, width)
        state[f"layers.{i}.0.to_out.weight"] = random_tensor(gen, width, inner)
        state[f"layers.{i}.1.0.weight"] = 1 + random_tensor(gen, width)
        state[f"layers.{i}.1.0.bias"] = random_tensor(gen, width)
        state[f"layers.{i}.1.1.weight"] = 2 * random_tensor(gen, 4 * width, width)
        state[f"layers.{i}.1.3.weight"] = random_tensor(gen, width, 4 * width)
    return state


def random_adapter(
    unet: nn.Module,
    image_proj: dict[str, Tensor],
    cross_dim: int,
    *,
    seed: int = 4,
    gain: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> StateDict:
    """A random adapter for `unet`: the given projector and one K', V' pair for each site."""
    gen = torch.Generator().manual_seed(seed)
    ip_adapter = {}
    for site, (_, hidden) in site_ids(unet).items():
        for kind in ("to_k_ip", "to_v_ip"):
            weight = gain * random_tensor(gen, hidden, cross_dim)
            ip_adapter[f"{site}.{kind}.weight"] = weight.to(dtype)
    image_proj = {key: value.to(dtype) for key, value in image_proj.items()}
    return {"image_proj": image_proj, "ip_adapter": ip_adapter}


def published_adapter(
    unet: nn.Module, variant: str, cross_dim: int, *, seed: int = 4, dtype: torch.dtype
) -> StateDict:
    """Random weights in the shapes of the published base (4 tokens) or Plus (16 tokens) file."""
    gen = torch.Generator().manual_seed(seed)
    if variant == "base":
        image_proj = {
            "proj.weight": random_tensor(gen, 4 * cross_dim, 1024),
            "proj.bias": random_tensor(gen, 4 * cross_dim),
            "norm.weight": torch.ones(cross_dim),
            "norm.bias": torch.zeros(cross_dim),
        }
    else:
        width, heads = (768, 12) if cross_dim == 768 else (1280, 20)
        image_proj = resampler_state(
            gen, feature=1280, width=width, heads=heads, depth=4, tokens=16, out=cross_dim
        )
    return random_adapter(unet, image_proj, cross_dim, seed=seed + 1, dtype=dtype)


def published_features(variant: str, dtype: torch.dtype, *, seed: int = 5) -> Tensor:
    """Random features in the shape of the published encoder (ViT-H/14), [1, ...]."""
    gen = torch.Generator().manual_seed(seed)
    shape = (1, 1024) if variant == "base" else (1, 257, 1280)
    return torch.randn(shape, generator=gen).to(dtype)


def flat(state: StateDict) -> dict[str, Tensor]:
    """The same weights under flat keys, as in a .safetensors file."""
    return {f"{part}.{key}": value for part, keys in state.items() for key, value in keys.items()}


def diffusers_load(unet: nn.Module, *states: StateDict, scale: float = 1.0) -> nn.Module:
    """Load adapters into `unet` as diffusers does; changes the unet."""
    unet._load_ip_adapter_weights([_copy(s) for s in states], low_cpu_mem_usage=False)
    diffusers_scale(unet, scale)
    return unet


def diffusers_scale(unet: nn.Module, scale: float) -> None:
    """Set the scale of every processor."""
    for processor in unet.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = [scale] * len(processor.scale)


def diffusers_embeds(features: list[Tensor], null: Tensor | None) -> Tensor:
    """diffusers' `image_embeds` entry: [negatives, positives] with a picture axis, [B, n, ...].

    `features` has one tensor [n, ...] per prompt; `null` None leaves the negatives out.
    """
    positive = torch.stack(features)
    if null is None:
        return positive
    negative = null.unsqueeze(0).expand(positive.shape)
    return torch.cat([negative, positive])


def _copy(state: StateDict) -> StateDict:
    return {part: {k: v.clone() for k, v in keys.items()} for part, keys in state.items()}


def diffusers_unload(unet: nn.Module, processors: dict[str, object]) -> None:
    """Remove diffusers' adapters; `processors` are the original ones."""
    unet.encoder_hid_proj = None  # first: its layers count as attention processors
    unet.set_attn_processor(dict(processors))
    unet.config.encoder_hid_dim_type = None
