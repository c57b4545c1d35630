"""The published adapter files as a table, and their tensors derived from meta-device bases.

Written down once more, apart from imageprompt: names and sizes from the published code and files,
sites and LoRA layers from diffusers' own models. Nothing here imports imageprompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bases import SD15, SDXL, meta_unet
from hosts_table import CASES

Shapes = dict[str, tuple[int, ...]]
LORA_RANK = 128


# ── projectors ───────────────────────────────────────────────────────────────────────────────────


def _layer(name: str, out: int, features: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, features)} | ({f"{name}.bias": (out,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(feature: int, out: int, tokens: int = 4) -> Shapes:
    return _layer("proj", tokens * out, feature) | _norm("norm", out)


def full(feature: int, out: int) -> Shapes:
    first = _layer("proj.0", feature, feature)
    return first | _layer("proj.2", out, feature) | _norm("proj.3", out)


def mlp(feature: int, inner: int, out: int, tokens: int = 4) -> Shapes:
    first = _layer("proj.0", inner, feature)
    return first | _layer("proj.2", tokens * out, inner) | _norm("norm", out)


def perceiver(feature: int, width: int, heads: int, out: int, depth: int = 4) -> Shapes:
    inner = 64 * heads
    shapes = _layer("proj_in", width, feature) | _layer("proj_out", out, width)
    shapes |= _norm("norm_out", out)
    for i in range(depth):
        block = f"layers.{i}"
        shapes |= _norm(f"{block}.0.norm1", width) | _norm(f"{block}.0.norm2", width)
        shapes |= _layer(f"{block}.0.to_q", inner, width, False)
        shapes |= _layer(f"{block}.0.to_kv", 2 * inner, width, False)
        shapes |= _layer(f"{block}.0.to_out", width, inner, False)
        shapes |= _norm(f"{block}.1.0", width)
        shapes |= _layer(f"{block}.1.1", 4 * width, width, False)
        shapes |= _layer(f"{block}.1.3", width, 4 * width, False)
    return shapes


def resampler(feature: int, width: int, heads: int, out: int, tokens: int = 16) -> Shapes:
    return {"latents": (1, tokens, width)} | perceiver(feature, width, heads, out)


def face_perceiver(feature: int, out: int, heads: int, tokens: int = 4) -> Shapes:
    inside = perceiver(feature, out, heads, out)
    return mlp(512, 1024, out, tokens) | {f"perceiver_resampler.{n}": s for n, s in inside.items()}


def redux(feature: int, out: int) -> Shapes:
    return _layer("redux_up", 3 * out, feature) | _layer("redux_down", out, 3 * out)


def time_resampler() -> Shapes:
    shapes = resampler(1152, 1280, 20, 2432, tokens=64)
    shapes |= _layer("time_embedding.linear_1", 1280, 320)
    shapes |= _layer("time_embedding.linear_2", 1280, 1280)
    for i in range(4):
        shapes |= _layer(f"layers.{i}.2.1", 4 * 1280, 1280)
    return shapes


# ── sites, from diffusers' models ────────────────────────────────────────────────────────────────


def unet_sites(unet: nn.Module, *, lora: bool, rank: int = LORA_RANK) -> Shapes:
    """K', V' of every cross-attention of a UNet, and LoRA on all of its attention layers."""
    shapes: Shapes = {}
    names = [name for name in unet.attn_processors if "motion_modules" not in name]
    for i, name in enumerate(names):
        attention: Any = unet.get_submodule(name.removesuffix(".processor"))
        width, read = attention.to_q.out_features, attention.to_k.in_features
        if ".attn2." in name:
            for kind in "kv":
                shapes[f"{i}.to_{kind}_ip.weight"] = (width, read)
        for kind in ("q", "k", "v", "out") if lora else ():
            inside = read if kind in "kv" else width
            shapes[f"{i}.to_{kind}_lora.down.weight"] = (rank, inside)
            shapes[f"{i}.to_{kind}_lora.up.weight"] = (width, rank)
    return shapes


@cache
def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


@cache
def sd35_large() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        return SD3Transformer2DModel(
            sample_size=128, num_layers=38, num_attention_heads=38, caption_projection_dim=2432,
            pooled_projection_dim=2048, in_channels=16, out_channels=16, pos_embed_max_size=192,
            qk_norm="rms_norm",
        )  # fmt: skip


def _joint_widths(model: Any) -> list[int]:
    names = [name.removesuffix(".processor") for name in model.attn_processors]
    return [model.get_submodule(name).to_q.out_features for name in names]


def _xlabs_sites(model: Any) -> Shapes:
    widths, text = _joint_widths(model), model.context_embedder.in_features
    shapes: Shapes = {}
    for i in range(len(model.transformer_blocks)):
        for kind in "kv":
            shapes |= _layer(f"{i}.to_{kind}_ip", widths[i], text)
    return shapes


def _instantx_sites(model: Any) -> Shapes:
    widths, text = _joint_widths(model), model.context_embedder.in_features
    return {
        f"{i}.to_{kind}_ip.weight": (width, text) for i, width in enumerate(widths) for kind in "kv"
    }


def _sd3_sites(model: Any) -> Shapes:
    shapes: Shapes = {}
    for i, width in enumerate(_joint_widths(model)):
        for kind in "kv":
            shapes[f"{i}.to_{kind}_ip.weight"] = (width, width)
        for name in ("norm_q", "norm_k", "norm_ip_k"):
            shapes[f"{i}.{name}.weight"] = (64,)
        shapes |= _layer(f"{i}.norm_ip.linear", 2 * width, 1280)
    return shapes


@cache
def kolors() -> nn.Module:
    from diffusers import UNet2DConditionModel

    config = {**SDXL.config, "encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"}
    config["projection_class_embeddings_input_dim"] = 5632
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


HOSTS: dict[str, Callable[[bool], Shapes]] = {
    "sd15": lambda lora: unet_sites(meta_unet(SD15), lora=lora),
    "sdxl": lambda lora: unet_sites(meta_unet(SDXL), lora=lora),
    "kolors": lambda lora: unet_sites(kolors(), lora=lora),
    "flux-xlabs": lambda _: _xlabs_sites(flux()),
    "flux-instantx": lambda _: _instantx_sites(flux()),
    "flux-text": lambda _: {},
    "sd3": lambda _: _sd3_sites(sd35_large()),
}


@cache
def _sites(host: str, lora: bool) -> Shapes:
    return HOSTS[host](lora)


# ── the table ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, eq=False)
class File:
    """One published file and what must be read off it."""

    projector: Shapes
    host: str
    lora: bool = False
    keys: int
    """Of the projector."""
    total: int
    """Parameters of the whole file."""
    variants: tuple[str, ...]
    feature: str
    width: int
    tokens: int | None
    twin: Callable[[int], Shapes] | None = None
    """The projector again, small, for a base whose text is that wide."""

    def shapes(self) -> Shapes:
        """All tensors of the file, by flat name of the standard layout."""
        sites = _sites(self.host, self.lora)
        flat = {f"image_proj.{name}": shape for name, shape in self.projector.items()}
        return flat | {f"ip_adapter.{name}": shape for name, shape in sites.items()}

    def small(self, base: str, *, seed: int = 5) -> dict[str, Tensor]:
        """A file of the same kind for a tiny base, random weights in two dtypes."""
        assert self.twin is not None
        case, gen = CASES[base], torch.Generator().manual_seed(seed)
        sites = unet_sites(case.unet(), lora=self.lora, rank=3)
        projector = {f"image_proj.{n}": s for n, s in self.twin(case.cross_dim).items()}
        made = {n: torch.randn(s, generator=gen) for n, s in projector.items()}
        for name, shape in sites.items():
            made[f"ip_adapter.{name}"] = torch.randn(shape, generator=gen).half()
        return made


_POOLED = {"variants": ("base",), "feature": "image_embeds", "tokens": 4, "keys": 4}
_POOLED |= {"twin": lambda out: linear(20, out)}
_PLUS = {"variants": ("plus", "plus-face"), "feature": "hidden_states[-2]", "tokens": 16}
_PLUS |= {"keys": 51, "width": 1280, "twin": lambda out: resampler(16, 24, 1, out)}
_FACE = {"variants": ("faceid",), "feature": "face_embeds", "width": 512, "tokens": 4}
_FACE |= {"keys": 6, "lora": True, "twin": lambda out: mlp(12, 24, out)}
_FACE_PLUS = {"variants": ("faceid-plus", "faceid-plus-v2"), "width": 1280, "tokens": 4}
_FACE_PLUS |= {"feature": "face_embeds + hidden_states[-2]", "keys": 56, "lora": True}
_FACE_PLUS |= {"twin": lambda out: face_perceiver(16, out, 1)}
_PORTRAIT = {"variants": ("portrait",), "feature": "face_embeds", "width": 512, "tokens": 16}
_PORTRAIT |= {"keys": 6, "twin": lambda out: mlp(12, 24, out, 16)}
_SD15: dict[str, Any] = {"host": "sd15"}
_SDXL: dict[str, Any] = {"host": "sdxl"}

PUBLISHED: dict[str, File] = {
    "ip-adapter_sd15": File(
        **_SD15, **_POOLED, projector=linear(1024, 768), width=1024, total=22_319_616
    ),
    "ip-adapter_sd15_light": File(
        **_SD15, **_POOLED, projector=linear(1024, 768), width=1024, total=22_319_616
    ),
    "ip-adapter_sd15_vit-G": File(
        **_SD15, **_POOLED, projector=linear(1280, 768), width=1280, total=23_106_048
    ),
    "ip-adapter-plus_sd15": File(
        **_SD15, **_PLUS, projector=resampler(1280, 768, 12, 768), total=49_087_488
    ),
    "ip-adapter-plus-face_sd15": File(
        **_SD15, **_PLUS, projector=resampler(1280, 768, 12, 768), total=49_087_488
    ),
    "ip-adapter-full-face_sd15": File(
        **_SD15, projector=full(1280, 768), keys=6, total=21_794_304, variants=("full",),
        feature="hidden_states[-2]", width=1280, tokens=None, twin=lambda out: full(16, out),
    ),
    "ip-adapter_sdxl": File(
        **_SDXL, **_POOLED, projector=linear(1280, 2048), width=1280, total=351_285_248
    ),
    "ip-adapter_sdxl_vit-h": File(
        **_SDXL, **_POOLED, projector=linear(1024, 2048), width=1024, total=349_188_096
    ),
    "ip-adapter-plus_sdxl_vit-h": File(
        **_SDXL, **_PLUS, projector=resampler(1280, 1280, 20, 2048), total=423_748_864
    ),
    "ip-adapter-plus-face_sdxl_vit-h": File(
        **_SDXL, **_PLUS, projector=resampler(1280, 1280, 20, 2048), total=423_748_864
    ),
    "ip-adapter-faceid_sd15": File(
        **_SD15, **_FACE, projector=mlp(512, 1024, 768), total=48_354_816
    ),
    "ip-adapter-faceid-plus_sd15": File(
        **_SD15, **_FACE_PLUS, projector=face_perceiver(1280, 768, 12), total=78_260_736
    ),
    "ip-adapter-faceid-plusv2_sd15": File(
        **_SD15, **_FACE_PLUS, projector=face_perceiver(1280, 768, 12), total=78_260_736
    ),
    "ip-adapter-faceid_sdxl": File(
        **_SDXL, **_FACE, projector=mlp(512, 1024, 2048), total=535_507_968
    ),
    "ip-adapter-faceid-plusv2_sdxl": File(
        **_SDXL, **_FACE_PLUS, projector=face_perceiver(1280, 2048, 32), total=743_707_648
    ),
    "ip-adapter-faceid-portrait_sd15": File(
        **_SD15, **_PORTRAIT, projector=mlp(512, 1024, 768, 16), total=32_291_328
    ),
    "ip-adapter-faceid-portrait-v11_sd15": File(
        **_SD15, **_PORTRAIT, projector=mlp(512, 1024, 768, 16), total=32_291_328
    ),
    "ip-adapter-faceid-portrait_sdxl": File(
        **_SDXL, **_PORTRAIT, projector=mlp(512, 1024, 2048, 16), total=374_903_808
    ),
    "ip-adapter-faceid-portrait_sdxl_unnorm": File(
        **_SDXL, projector=resampler(512, 1280, 20, 2048), keys=51, total=422_765_824,
        variants=("portrait-unnorm",), feature="raw face_embeds", width=512, tokens=16,
        twin=lambda out: resampler(512, 24, 1, out),
    ),
}  # fmt: skip
"""The 19 files of the reference's table."""

OTHERS: dict[str, File] = {
    "InstantID": File(
        **_SDXL, projector=resampler(512, 1280, 20, 2048), keys=51, total=422_765_824,
        variants=("portrait-unnorm",), feature="raw face_embeds", width=512, tokens=16,
    ),
    "Kolors-IP-Adapter-Plus": File(
        host="kolors", **{**_PLUS, "width": 1024}, projector=resampler(1024, 2048, 12, 2048),
        total=506_552_320,
    ),
    "Kolors-IP-Adapter-FaceID-Plus": File(
        host="kolors", projector=face_perceiver(1024, 4096, 64, 6), keys=56, total=1_192_903_680,
        variants=("faceid-plus-kolors",), feature="raw face_embeds + hidden_states[-2]", width=1024,
        tokens=6,
    ),
    "flux-ip-adapter": File(
        host="flux-xlabs", projector=linear(768, 4096), keys=4, total=490_874_880,
        variants=("xlabs",), feature="image_embeds", width=768, tokens=4,
    ),
    "flux-ip-adapter-v2": File(
        host="flux-xlabs", projector=linear(768, 4096, 16), keys=4, total=528_672_768,
        variants=("xlabs",), feature="image_embeds", width=768, tokens=16,
    ),
    "FLUX.1-dev-IP-Adapter": File(
        host="flux-instantx", projector=mlp(1152, 2304, 4096, 128), keys=6, total=2_645_600_512,
        variants=("instantx",), feature="pooler_output", width=1152, tokens=128,
    ),
    "flux1-redux-dev": File(
        host="flux-text", projector=redux(1152, 4096), keys=4, total=64_503_808,
        variants=("redux",), feature="last_hidden_state", width=1152, tokens=None,
    ),
    "SD3.5-Large-IP-Adapter": File(
        host="sd3", projector=time_resampler(), keys=63, total=797_925_888,
        variants=("instantx-sd3",), feature="hidden_states[-2]", width=1152, tokens=64,
    ),
}  # fmt: skip
"""Files outside of that table: InstantID, Kolors, FLUX and SD3.5."""
