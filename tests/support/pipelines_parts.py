"""Tiny parts of every kind that diffusers' pipelines are made of, by the name of their argument."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from PIL import Image

from tiny_stack import SIDE, make_pipeline, make_tokenizer

LATENT = SIDE // 2
_BLOCKS: dict[str, Any] = {
    "sample_size": LATENT,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
_SIZES = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
_SIMPLE: dict[str, Any] = {  # DeepFloyd IF and Kandinsky: keys and values of the text are added
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
}

UNETS: dict[str, dict[str, Any]] = {
    "sd": {"cross_attention_dim": 32},
    "xl": {
        **_SIZES,
        "cross_attention_dim": 64,
        "transformer_layers_per_block": 2,
        "projection_class_embeddings_input_dim": 24 + 6 * 4,
    },
    "xl refiner": {
        **_SIZES,
        "cross_attention_dim": 32,
        "projection_class_embeddings_input_dim": 24 + 5 * 4,
    },
    "kolors": {
        **_SIZES,
        "cross_attention_dim": 64,
        "encoder_hid_dim": 32,
        "encoder_hid_dim_type": "text_proj",
        "projection_class_embeddings_input_dim": 32 + 6 * 4,
    },
    "sd 5 channels": {"cross_attention_dim": 32, "in_channels": 5},
    "sd 7 channels": {"cross_attention_dim": 32, "in_channels": 7, "num_class_embeds": 1000},
    "sd 8 channels": {"cross_attention_dim": 32, "in_channels": 8},
    "sd 9 channels": {"cross_attention_dim": 32, "in_channels": 9},
    "xl 8 channels": {
        **_SIZES,
        "cross_attention_dim": 64,
        "in_channels": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 4,
    },
    "pictures as text": {"cross_attention_dim": 24},
    "pictures as text, 9 channels": {"cross_attention_dim": 24, "in_channels": 9},
    "sd, two layers": {"cross_attention_dim": 32, "layers_per_block": 2},
    "lcm": {"cross_attention_dim": 32, "time_cond_proj_dim": 8},
    "gligen": {"cross_attention_dim": 32, "attention_type": "gated"},
    "gligen with pictures": {"cross_attention_dim": 32, "attention_type": "gated-text-image"},
    "unclip": {
        "cross_attention_dim": 32,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 64,
    },
    "latent upscaler": {
        "cross_attention_dim": 32,
        "in_channels": 8,
        "out_channels": 5,
        "down_block_types": ("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 2),
        "mid_block_type": None,
        "up_block_types": (*["KCrossAttnUpBlock2D"] * 2, "KUpBlock2D"),
        "block_out_channels": (32, 64, 64),
        "attention_head_dim": 8,
        "norm_num_groups": None,
        "act_fn": "gelu",
        "conv_in_kernel": 1,
        "conv_out_kernel": 1,
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_type": "fourier",
        "timestep_post_act": "gelu",
        "time_cond_proj_dim": 128 + 32,
        "only_cross_attention": (False, True, True),
    },
    "pixels": {**_SIMPLE, "cross_attention_dim": 32, "encoder_hid_dim": 32},
    "sound": {
        "cross_attention_dim": (8, 16),
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 24,
        "class_embeddings_concat": True,
    },
}
"""What tells the UNet of one family of pipelines from that of another."""


@cache
def unet(kind: str) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    return UNet2DConditionModel(**{**_BLOCKS, **UNETS[kind]}).eval()


@cache
def _stack() -> Any:
    torch.manual_seed(0)
    return make_pipeline()


@cache
def controlnet(kind: str) -> Any:
    from diffusers import ControlNetModel, ControlNetUnionModel

    torch.manual_seed(2)
    common: dict[str, Any] = {"conditioning_embedding_out_channels": (8, 8)}
    if kind == "union":
        shape = {**_BLOCKS, **UNETS["xl"]}
        known = inspect.signature(ControlNetUnionModel.__init__).parameters
        shape = {name: value for name, value in shape.items() if name in known}
        common |= {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8}
        made = ControlNetUnionModel(**shape, **common)
    else:
        made = ControlNetModel.from_unet(unet(kind), **common)
    for zero in (*made.controlnet_down_blocks, made.controlnet_mid_block):
        torch.nn.init.normal_(zero.weight, std=0.5)  # else it adds nothing
    return made.eval()


@cache
def sparse_controlnet() -> Any:
    from diffusers import SparseControlNetModel

    return SparseControlNetModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=32,
        norm_num_groups=4,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
        conditioning_embedding_out_channels=(8, 8),
    ).eval()


@cache
def motion_adapter(channels: int | None = None) -> Any:
    from diffusers import MotionAdapter

    return MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=8,
        use_motion_mid_block=channels is None,
        conv_in_channels=channels,
    ).eval()


@cache
def t2i_adapter() -> Any:
    from diffusers import T2IAdapter

    return T2IAdapter(
        in_channels=3,
        channels=[8, 16],
        num_res_blocks=1,
        downscale_factor=4,
        adapter_type="full_adapter_xl",
    ).eval()


@cache
def text_encoder_2(projection: int = 24) -> Any:
    from transformers import CLIPTextModelWithProjection

    config = copy.deepcopy(_stack().text_encoder.config)
    config.projection_dim = projection
    return CLIPTextModelWithProjection(config).eval()


@cache
def long_text_encoder() -> Any:
    from transformers import CLIPTextModel

    config = copy.deepcopy(_stack().text_encoder.config)
    config.max_position_embeddings = 77
    return CLIPTextModel(config).eval()


@cache
def vision(kind: str) -> Any:
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
    from transformers import CLIPVisionModelWithProjection

    config = copy.deepcopy(_stack().image_encoder.config)
    config.projection_dim = 32
    if kind == "example":
        return PaintByExampleImageEncoder(config, proj_size=32).eval()
    return CLIPVisionModelWithProjection(config).eval()


@cache
def image_project() -> Any:
    from diffusers.pipelines.deprecated.stable_diffusion_gligen import (
        pipeline_stable_diffusion_gligen_text_image as module,
    )

    return module.CLIPImageProjection(hidden_size=32).eval()


def clip_processor() -> Any:
    from transformers import CLIPProcessor

    return CLIPProcessor(_stack().feature_extractor, make_tokenizer())


def normalizer() -> Any:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    return StableUnCLIPImageNormalizer(embedding_dim=32)


@cache
def prior() -> Any:
    from diffusers import PriorTransformer

    return PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        embedding_dim=32,
        num_layers=1,
        num_embeddings=16,
    ).eval()


@cache
def controlnet_xs(kind: str) -> Any:
    from diffusers import ControlNetXSAdapter

    return ControlNetXSAdapter.from_unet(unet(kind), size_ratio=0.5, num_attention_heads=2)


@cache
def deep_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config({**_stack().vae.config, "in_channels": 6, "out_channels": 6})


@cache
def vocoder() -> Any:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    return SpeechT5HifiGan(SpeechT5HifiGanConfig(model_in_dim=8, upsample_initial_channel=16))


def scheduler(name: str = "DDIMScheduler", **config: Any) -> Any:
    import diffusers

    return getattr(diffusers, name)(**config)


PARTS: dict[str, Callable[[], Any]] = {
    "vae": lambda: _stack().vae,
    "vqvae": lambda: _stack().vae,
    "text_encoder": lambda: _stack().text_encoder,
    "bert": lambda: _stack().text_encoder,
    "text_encoder_2": text_encoder_2,
    "tokenizer": make_tokenizer,
    "tokenizer_2": make_tokenizer,
    "scheduler": lambda: scheduler(clip_sample=False, steps_offset=1),
    "low_res_scheduler": lambda: scheduler("DDPMScheduler"),
    "inverse_scheduler": lambda: scheduler("DDIMInverseScheduler"),
    "image_noising_scheduler": lambda: scheduler("DDPMScheduler"),
    "controlnet": lambda: controlnet("sd"),
    "adapter": t2i_adapter,
    "motion_adapter": motion_adapter,
    "image_encoder": lambda: _stack().image_encoder,
    "feature_extractor": lambda: _stack().feature_extractor,
    "movq": lambda: _stack().vae,
    "safety_checker": lambda: None,
    "requires_safety_checker": lambda: False,
    "add_watermarker": lambda: False,
}


def make(
    kind: type, unet_kind: str, given: Mapping[str, Callable[[], Any]], *, own_unet: bool
) -> Any:
    """A pipeline: `given` parts, then those of PARTS, then its own defaults, then None.

    The UNet is shared with other pipelines, but for `own_unet`: some leave theirs changed.
    """
    made: dict[str, Any] = {}
    for name, wanted in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        if name in given:
            made[name] = given[name]()
        elif name == "unet":
            made[name] = copy.deepcopy(unet(unet_kind)) if own_unet else unet(unet_kind)
        elif name in PARTS:
            made[name] = PARTS[name]()
        elif wanted.default is inspect.Parameter.empty:
            made[name] = None
    pipe = kind(**made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(colour: str = "red", size: int = SIDE) -> Image.Image:
    half = Image.new("RGB", (size, size), colour)
    half.paste("white", (0, 0, size // 2, size // 2))
    return half


def mask() -> Image.Image:
    half = Image.new("L", (SIDE, SIDE), 0)
    half.paste(255, (0, 0, SIDE, SIDE // 2))
    return half
