"""Train the content and style adapters of the SD3 stack, like those of the bundled stack."""

from __future__ import annotations

from pathlib import Path

import torch

from bundled_stack.adapters import TextStates, TrainableBase
from bundled_stack.dual import main
from bundled_stack.sd3.base import PlainAttention
from bundled_stack.sd3.export import STACK
from bundled_stack.sd3.text import CaptionEncoder
from imageprompt import loading
from imageprompt.core import bundled
from imageprompt.training.config.config import Timesteps


def sd3_base(stack: Path) -> TrainableBase:
    """The exported SD3 stack."""
    pipe = loading.load_base(bundled.SD3, stack, dtype="float32", device="cpu", bars=False).pipe
    pipe.transformer.set_attn_processor(PlainAttention())
    encoder = CaptionEncoder()

    def encode(lines: list[str]) -> TextStates:
        tokens, pooled = encoder(lines)
        return tokens, {"pooled_projections": pooled}

    from transformers import CLIPVisionModelWithProjection

    tower = CLIPVisionModelWithProjection.from_pretrained(stack / "image_encoder")
    for part in (pipe.transformer, pipe.vae, tower):
        part.requires_grad_(False)
    times = Timesteps(uniform=0.35, mean=1.0, std=1.2)
    return TrainableBase(
        pipe, pipe.transformer, tower.eval(), encode, 1.5e-3, times, init="copy", name="sd3-"
    )


if __name__ == "__main__":
    torch.manual_seed(7)
    main(sd3_base, STACK)
