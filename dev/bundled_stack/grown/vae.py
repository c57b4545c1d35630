"""Refine the bundled stack's autoencoder for the grown world: 128x128 pictures to 16x16 latents.

It was trained on drawn pictures of 64x64 pixels, and decodes these at 30.8 dB as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundled_stack.checkpoints import load_state
from bundled_stack.grown import judge, pool
from bundled_stack.grown.labels import labels
from bundled_stack.stages import training_options
from bundled_stack.timed_run import TimedRun
from bundled_stack.vae import losses
from imageprompt.core import bundled

NAME = "vae"


def build() -> Any:
    """The autoencoder of the bundled stack, which this world refines: 16 channels, factor 8."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(bundled.folder() / "vae", torch_dtype=torch.float32)
    return model.to(memory_format=torch.channels_last)


def crop(x: Tensor, rng: np.random.Generator, side: int) -> Tensor:
    """The same square of each picture."""
    top, left = rng.integers(0, x.shape[-1] - side + 1, size=2)
    return x[..., top : top + side, left : left + side]


@torch.no_grad()
def ceiling(model: Any, work: Path, count: int, device: str) -> dict[str, float]:
    """PSNR in dB of decoded test pictures, and what the judge reads in them."""
    fresh = pool.make(work, "test", count)
    x = pool.to_float(pool.load(work, "test", count)).to(device)
    decoded = torch.cat(
        [model.decode(model.encode(part).latent_dist.mode()).sample for part in x.split(100)]
    ).clamp(-1, 1)
    errors = ((decoded - x) / 2).square().mean((1, 2, 3)).clamp_min(1e-8)
    found = {"psnr": float(-10 * errors.log10().mean())}
    if (work / "judge.ckpt").exists():
        hits = judge.correct(judge.load(work, device), decoded, labels(fresh).to(device))
        found |= judge.shares(hits)
    return found


def load(work: Path, device: str = "cpu") -> Any:
    """The trained autoencoder."""
    model, state = build(), load_state(work / f"{NAME}.ckpt")
    model.load_state_dict(state["model"] | state["ema"]["average"])
    return model.to(device).eval().requires_grad_(False)


def train(work: Path, minutes: float, *, count: int, batch: int, device: str, rate: float) -> None:
    """Train for this many minutes, on crops at first; an unfinished run is resumed."""
    model = build().to(device)
    run = TimedRun(work, NAME, model, minutes=minutes, rate=rate, ema=0.997, decay=1e-4, flat=0.1)
    pool.make(work, "train", count)
    pictures = pool.load(work, "train", count).to(device)
    rng = np.random.default_rng(run.steps)
    while not run.done:
        whole = run.progress > 0.6
        chosen = torch.from_numpy(rng.integers(count, size=batch if whole else 4 * batch))
        x = pool.to_float(pictures[chosen.to(device)])
        x = (x if whole else crop(x, rng, 64)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss, parts = losses(model, x)
        run.step(loss, len(x), parts)
    model.load_state_dict(run.ema_state())
    run.log(**ceiling(model.eval(), work, min(2000, count), device))


if __name__ == "__main__":
    train(**vars(training_options(batch=6, rate=1e-3).parse_args()))
