"""Train the base and the Plus adapter of the SD3 stack, like those of the bundled stack."""

from __future__ import annotations

from pathlib import Path

import torch

from bundled_stack import adapters
from bundled_stack.sd3.base import PlainAttention
from bundled_stack.sd3.export import pipeline
from bundled_stack.sd3.text import CaptionEncoder
from imageprompt.core import bundled
from imageprompt.training.config.config import Timesteps


def sd3_base(work: Path) -> adapters.TrainableBase:
    """The SD3 stack with the image encoder of the bundled one."""
    from transformers import CLIPVisionModelWithProjection

    pipe, encoder = pipeline(work), CaptionEncoder()
    pipe.transformer.set_attn_processor(PlainAttention())
    tower = CLIPVisionModelWithProjection.from_pretrained(bundled.folder() / "image_encoder")

    def encode(lines: list[str]) -> adapters.TextStates:
        tokens, pooled = encoder(lines)
        return tokens, {"pooled_projections": pooled}

    return adapters.TrainableBase(
        pipe,
        pipe.transformer,
        tower.eval().requires_grad_(False),
        encode,
        rate=1.5e-3,
        timesteps=Timesteps(uniform=0.35, mean=1.0, std=1.2),
        init="copy",
        contradicting=0.3,
        places=4,
        name="sd3-",
    )


if __name__ == "__main__":
    torch.manual_seed(7)
    adapters.main(sd3_base)
