"""A pipeline folder like the bundled one, with random weights and 16x16 pictures: just fast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import imageprompt as ip
from copies import Template

SIDE = 16
WORDS = ("a", "red", "blue", "star", "square")


def save_stack(
    folder: Path, *, seed: int = 0, adapters: bool = True, one_layer: bool = False
) -> Path:
    """A StableDiffusionPipeline with `image_encoder/` and `adapters/{base,plus}.safetensors`.

    `one_layer`: a denoiser of one level with one attention layer, for what compiles it.
    """
    torch.manual_seed(seed)
    pipe = make_pipeline(one_layer=one_layer)
    pipe.save_pretrained(folder)
    if adapters:
        (folder / "adapters").mkdir()
        for name, options in (("base", {}), ("plus", {"depth": 1, "num_tokens": 4})):
            adapter = ip.Adapter.create(
                name, denoiser=pipe.unet, encoder=pipe.image_encoder, **options
            )
            adapter.save(folder / "adapters" / f"{name}.safetensors")
    return folder


def _built_once(build: Callable[..., Any]) -> Callable[..., Any]:
    """For the same random numbers the same pipeline: built once, then copied."""
    kept: dict[Any, tuple[Template, torch.Tensor]] = {}

    @functools.wraps(build)
    def make(**options: Any) -> Any:
        if torch.empty(0).device.type != "cpu":  # as `with torch.device("meta")` wants it
            return build(**options)
        key = str(options), torch.get_rng_state().numpy().tobytes()
        if key not in kept:
            pipe = build(**options)
            kept[key] = Template(pipe), torch.get_rng_state()
            return pipe
        template, after = kept[key]
        torch.set_rng_state(after)
        return template.copy()

    return make


@_built_once
def make_pipeline(*, one_layer: bool = False) -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from diffusers import UNet2DConditionModel as UNet
    from transformers import (
        CLIPImageProcessorPil,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    tokenizer = make_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2}
    text = CLIPTextConfig(
        **shape,
        vocab_size=len(tokenizer),
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(**shape, image_size=SIDE, patch_size=8, projection_dim=24)
    levels = 1 if one_layer else 2
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            sample_size=SIDE,
        ),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=UNet(
            sample_size=SIDE // 2,
            block_out_channels=(24,) if one_layer else (8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D")[:levels],
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")[-levels:],
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=32,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        requires_safety_checker=False,
    )


@_built_once
def make_xl_pipeline(*, one_level: bool = False) -> Any:
    """The same parts as a StableDiffusionXLPipeline: two text encoders, size conditioning.

    `one_level`: a denoiser of one level with two attention layers, for what compiles it.
    """
    from diffusers import StableDiffusionXLPipeline
    from diffusers import UNet2DConditionModel as UNet
    from transformers import CLIPTextModelWithProjection

    parts = make_pipeline()
    text = parts.text_encoder.config
    text.projection_dim = 24
    levels = 1 if one_level else 2
    return StableDiffusionXLPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(text).eval(),
        tokenizer=parts.tokenizer,
        tokenizer_2=parts.tokenizer,
        unet=UNet(
            sample_size=SIDE // 2,
            block_out_channels=(8, 16)[:levels],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D")[:levels],
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")[-levels:],
            layers_per_block=1,
            attention_head_dim=2,
            transformer_layers_per_block=2,
            cross_attention_dim=64,
            norm_num_groups=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=24 + 6 * 4,
        ),
        scheduler=parts.scheduler,
        image_encoder=parts.image_encoder,
        feature_extractor=parts.feature_extractor,
        add_watermarker=False,
    )


def make_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = sorted({letter for word in WORDS for letter in word})
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
