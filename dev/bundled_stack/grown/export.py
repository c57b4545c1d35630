"""Assemble the stack of the grown world in diffusers' own layout, weights in float16."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from bundled_stack.checkpoints import load_state
from bundled_stack.export import STACK as BUNDLED
from bundled_stack.export import declare_float32, load_ema, replace_folder
from bundled_stack.grown import judge, vae, vision
from bundled_stack.grown.base import Base
from bundled_stack.latents import centre
from bundled_stack.sd3.base import TEXT_TOKENS
from bundled_stack.sd3.export import zero_t5
from bundled_stack.tokenizer import build_tokenizer
from imageprompt.core import bundled
from imageprompt.demo import scenes_128 as scenes
from imageprompt.loading.pipeline import TEXT_TOKENS_KEY

STACK = BUNDLED.with_name(bundled.FOLDERS[bundled.SD3_128])
LIMIT = 22_000_000
SHIFT = 2.0  # sampling spends more steps on much noise, where adapters lay the objects out
LINKS = {
    "text_encoder_2/model.safetensors": "../text_encoder/model.safetensors",
    "tokenizer_2/tokenizer.json": "../tokenizer/tokenizer.json",
}


def autoencoder(work: Path, total: int) -> Any:
    """The refined autoencoder; its latents have mean 0 in each channel, scaled deviation 1."""
    from diffusers import AutoencoderKL

    latents, trained = load_state(work / f"latents-{total}.ckpt"), vae.load(work)
    config = {key: value for key, value in trained.config.items() if key != "_name_or_path"}
    config |= {
        "scaling_factor": latents["scale"],
        "shift_factor": 0.0,  # the pipeline adds it to the latents
        "sample_size": scenes.SIZE,
    }
    model = AutoencoderKL.from_config(config)
    model.load_state_dict(trained.state_dict())
    centre(model, latents["mean"].flatten())
    return model.eval().requires_grad_(False)


def pipeline(work: Path, total: int) -> Any:
    """The stack trained on `total` pictures as a plain StableDiffusion3Pipeline in float32."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    base = load_ema(work, "base-0", Base())
    base.transformer.register_to_config(**{TEXT_TOKENS_KEY: TEXT_TOKENS})
    words = scenes.all_words()
    tokenizer, t5 = zero_t5(words)
    return StableDiffusion3Pipeline(
        transformer=base.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=autoencoder(work, total),
        text_encoder=base.text,
        tokenizer=build_tokenizer(words),
        text_encoder_2=base.text,
        tokenizer_2=build_tokenizer(words),
        text_encoder_3=t5,
        tokenizer_3=tokenizer,
    )


def save_encoder(work: Path, folder: Path) -> None:
    """Write the image encoder and its preprocessing; the pipeline itself knows none for CLIP."""
    from transformers import CLIPImageProcessorPil

    side = scenes.SIZE
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    vision.load(work).half().save_pretrained(folder / "image_encoder")
    processor.save_pretrained(folder / "feature_extractor")


def export(work: Path, total: int, target: Path = STACK) -> int:
    """Write the folder (pipeline, judge, adapter if trained). Returns the size of its own files."""
    from safetensors.torch import save_file

    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline(work, total).to(torch.float16).save_pretrained(fresh, safe_serialization=True)
    save_encoder(work, fresh)
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder"):
        declare_float32(fresh / part / "config.json")
    save_file(
        {name: value.half().contiguous() for name, value in judge.load(work).state_dict().items()},
        fresh / "judge.safetensors",
    )
    for name, original in LINKS.items():
        (fresh / name).unlink()
        (fresh / name).symlink_to(original)
    return replace_folder(target, fresh, work / "grown-adapters", LIMIT)


if __name__ == "__main__":
    target = Path(sys.argv[3]) if len(sys.argv) > 3 else STACK
    print(export(Path(sys.argv[1]), int(sys.argv[2]), target))
