"""Published bases: the configs that decide what they cost, and how a picture is made with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imageprompt.hosts.unet import FAMILIES

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A model by its class and config."""

    library: str
    kind: str
    """The class."""
    config: Config


def _clip_text(width: int, layers: int, heads: int, **more: Any) -> Part:
    config = {
        "vocab_size": 49408,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        **more,
    }
    return Part("transformers", "CLIPTextModelWithProjection" if more else "CLIPTextModel", config)


def _clip_vision(width: int, layers: int, mlp: int, projection: int, size: int = 224) -> Part:
    config = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "intermediate_size": mlp,
        "projection_dim": projection,
        "patch_size": 14,
        "image_size": size,
    }
    return Part("transformers", "CLIPVisionModelWithProjection", config)


CLIP_L_TEXT = _clip_text(768, 12, 12)
OPENCLIP_H_TEXT = _clip_text(1024, 23, 16)
OPENCLIP_G_TEXT = _clip_text(1280, 32, 20, hidden_act="gelu")
T5_XXL = Part(
    "transformers",
    "T5EncoderModel",
    {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_heads": 64,
        "num_layers": 24,
        "feed_forward_proj": "gated-gelu",
    },
)
VIT_H = _clip_vision(1280, 32, 5120, 1024)
CLIP_L_VISION = _clip_vision(1024, 24, 4096, 768)
CLIP_L_336 = _clip_vision(1024, 24, 4096, 768, 336)
SIGLIP = Part(
    "transformers",
    "SiglipVisionModel",
    {
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "intermediate_size": 4304,
        "patch_size": 14,
        "image_size": 384,
    },
)


def _vae(channels: int, **more: Any) -> Part:
    config = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": channels,
        **more,
    }
    return Part("diffusers", "AutoencoderKL", config)


_VAE_4 = _vae(4)
_VAE_16 = _vae(16, use_quant_conv=False, use_post_quant_conv=False)


@dataclass(frozen=True, kw_only=True)
class PublishedBase:
    """A base, and what the pipeline does with it by default."""

    family: str
    """Its name in `imageprompt hosts`."""
    title: str
    denoiser: Part
    vae: Part
    text: Mapping[str, tuple[Part | int, int]]
    """Title -> (model, or its parameters where no class of ours builds it; tokens)."""
    image_encoder: Part
    """The one that published adapters for it read."""
    size: int
    """Pixels of a side that it is made for."""
    steps: int
    rows: int
    """Of a batch for one picture: 2 with classifier-free guidance."""
    vae_in_float32: bool = False
    """Does the pipeline decode in float32, whatever the dtype is?"""


def _unet(**config: Any) -> Part:
    return Part("diffusers", "UNet2DConditionModel", {"layers_per_block": 2, **config})


_SDXL = {"sample_size": 128, "addition_embed_type": "text_time", "addition_time_embed_dim": 256}


def _flux(guidance: bool) -> Part:
    config = {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": guidance,
        "axes_dims_rope": (16, 56, 56),
    }
    return Part("diffusers", "FluxTransformer2DModel", config)


def _sd3(layers: int, positions: int, **more: Any) -> Part:
    config = {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": layers,
        "num_attention_heads": layers,
        "attention_head_dim": 64,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 64 * layers,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": positions,
        "qk_norm": "rms_norm",
        **more,
    }
    return Part("diffusers", "SD3Transformer2DModel", config)


_FLUX_TEXT = {"CLIP-L": (CLIP_L_TEXT, 77), "T5-XXL": (T5_XXL, 512)}
_SD3_TEXT = {
    "CLIP-L": (CLIP_L_TEXT, 77),
    "OpenCLIP-bigG": (OPENCLIP_G_TEXT, 77),
    "T5-XXL": (T5_XXL, 256),
}

BASES: Mapping[str, PublishedBase] = {
    "sd15": PublishedBase(
        family="sd15",
        title="Stable Diffusion 1.5",
        denoiser=_unet(**FAMILIES["sd15"]),
        vae=_VAE_4,
        text={"CLIP-L": (CLIP_L_TEXT, 77)},
        image_encoder=VIT_H,
        size=512,
        steps=50,
        rows=2,
    ),
    "sd2": PublishedBase(
        family="sd2",
        title="Stable Diffusion 2.1",
        denoiser=_unet(**FAMILIES["sd2"]),
        vae=_VAE_4,
        text={"OpenCLIP-H": (OPENCLIP_H_TEXT, 77)},
        image_encoder=VIT_H,
        size=768,
        steps=50,
        rows=2,
    ),
    "sdxl": PublishedBase(
        family="sdxl",
        title="Stable Diffusion XL",
        denoiser=_unet(**FAMILIES["sdxl"], **_SDXL, projection_class_embeddings_input_dim=2816),
        vae=_VAE_4,
        text={"CLIP-L": (CLIP_L_TEXT, 77), "OpenCLIP-bigG": (OPENCLIP_G_TEXT, 77)},
        image_encoder=VIT_H,
        size=1024,
        steps=50,
        rows=2,
        vae_in_float32=True,
    ),
    "kolors": PublishedBase(
        family="kolors",
        title="Kolors",
        denoiser=_unet(**FAMILIES["kolors"], **_SDXL, projection_class_embeddings_input_dim=5632),
        vae=_VAE_4,
        text={"ChatGLM3-6B": (6_243_584_000, 256)},
        image_encoder=CLIP_L_336,
        size=1024,
        steps=50,
        rows=2,
        vae_in_float32=True,
    ),
    "flux-dev": PublishedBase(
        family="flux",
        title="FLUX.1 dev",
        denoiser=_flux(True),
        vae=_VAE_16,
        text=_FLUX_TEXT,
        image_encoder=CLIP_L_VISION,
        size=1024,
        steps=28,
        rows=1,
    ),
    "flux-schnell": PublishedBase(
        family="flux",
        title="FLUX.1 schnell",
        denoiser=_flux(False),
        vae=_VAE_16,
        text={"CLIP-L": (CLIP_L_TEXT, 77), "T5-XXL": (T5_XXL, 256)},
        image_encoder=CLIP_L_VISION,
        size=1024,
        steps=4,
        rows=1,
    ),
    "sd35-large": PublishedBase(
        family="sd3",
        title="Stable Diffusion 3.5 Large",
        denoiser=_sd3(38, 192),
        vae=_VAE_16,
        text=_SD3_TEXT,
        image_encoder=SIGLIP,
        size=1024,
        steps=28,
        rows=2,
    ),
    "sd35-medium": PublishedBase(
        family="sd3",
        title="Stable Diffusion 3.5 Medium",
        denoiser=_sd3(24, 384, dual_attention_layers=tuple(range(13))),
        vae=_VAE_16,
        text=_SD3_TEXT,
        image_encoder=SIGLIP,
        size=1024,
        steps=40,
        rows=2,
    ),
}
