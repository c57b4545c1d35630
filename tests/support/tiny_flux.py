"""A tiny FLUX pipeline with random weights, a tiny SigLIP, and pictures made by it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import imageprompt as ip
from transformers_table import CASES

FEATURES = 24
"""Width of the tiny SigLIP, 4 patches a picture."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def pipeline() -> Any:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ip.bundled.folder() / "tokenizer")
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=1,
        shift_factor=0.0,
    ).eval()
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    t5 = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1)
    made = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(),
        vae,
        CLIPTextModel(clip).eval(),
        tokenizer,
        T5EncoderModel(t5).eval(),
        tokenizer,
        CASES["flux"].build(),
    )
    made.set_progress_bar_config(disable=True)
    return made


def siglip() -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(2)
    shape = {"hidden_size": FEATURES, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    return SiglipVisionModel(
        SiglipVisionConfig(**shape, num_hidden_layers=1, num_attention_heads=1)
    ).eval()


class NoEncoder:
    """Has a width, for new adapters that are given features."""

    fingerprint, image_size = "none", 8

    def width(self, feature: object) -> int:
        return FEATURES

    def encode(self, pictures: Any, feature: Any) -> Tensor:
        raise NotImplementedError

    def encode_null(self, feature: Any) -> Tensor:
        raise NotImplementedError


def make(pipe: Any, *texts: str, steps: int = 4, **call: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = pipe(
        **({} if "prompt_embeds" in call else {"prompt": list(texts or ("a star",))}),
        num_inference_steps=steps,
        height=16,
        width=16,
        output_type="pt",
        generator=generator,
        **{"max_sequence_length": 8, **call},
    ).images
    assert isinstance(images, Tensor)
    return images
