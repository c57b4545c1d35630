"""Train the base and the Plus adapter of the SD3 stack, like those of the bundled stack.

Four of twelve tokens first learn where the object is, and K' and V' start from the keys and values
that the base itself has of full captions (`training/init.py`). The bundled Plus is older: its K'
and V' started as copies, and .3 of its references contradicted their caption.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bundled_stack import adapters
from bundled_stack.sd3.base import PlainAttention
from bundled_stack.sd3.export import pipeline
from bundled_stack.sd3.text import CaptionEncoder
from imageprompt.core import bundled
from imageprompt.hosts import training_of
from imageprompt.training.config.config import Timesteps
from imageprompt.training.data.dataset import indices_at
from imageprompt.training.init import CaptionedCall, fit_joint_layers

OPTIONS: dict[str, dict[str, Any]] = {
    "base": {"num_tokens": 12},
    "plus": adapters.OPTIONS["plus"],
}
FITTED_BATCHES = 12


def fit_to_captions(adapter: Any, samples: adapters.CaptionedDataset, words: int) -> None:
    """Start K' and V' from what the base makes of so many words of the captions."""
    base, times = samples.base, samples.base.timesteps

    def call_at(step: int) -> CaptionedCall:
        indices = indices_at(step, adapters.WARM_START_BATCH, len(samples), seed=1)
        text, added = base.encode_text(samples.full_captions(indices))
        generator = torch.Generator().manual_seed(step)
        clean = samples.latents[indices].float()
        share = torch.sigmoid(times.mean + times.std * torch.randn(len(clean), generator=generator))
        noise = torch.randn(clean.shape, generator=generator)
        noisy = clean.lerp(noise, share[:, None, None, None])
        return CaptionedCall(
            samples.caption_states(step, words, 0)[1],
            lambda states: samples.choose_words(states, indices, words),
            lambda: training_of(base.denoiser).predict(
                base.denoiser, noisy, 1000 * share, text, added, 1.0
            ),
        )

    fit_joint_layers(adapter, base.denoiser, map(call_at, range(FITTED_BATCHES)))


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
        contradicting=0.5,
        places=4,
        options=OPTIONS,
        fit_layers=fit_to_captions,
        name="sd3-",
    )


if __name__ == "__main__":
    torch.manual_seed(7)
    adapters.main(sd3_base)
