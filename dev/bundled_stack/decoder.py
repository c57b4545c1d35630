"""Sharpen the finished autoencoder: only its decoder is trained, so the latents stay the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bundled_stack import pool
from bundled_stack.latents import load_latents, load_vae
from bundled_stack.timed_run import TimedRun
from bundled_stack.vae import gradients, to_tensor

BATCH = 8
NOISE = 0.04  # added to the latents: generated ones are not perfect either


def losses(vae: Any, latents: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L1, squared error, and the L1 of the gradients at full weight."""
    y = vae.decode(latents / vae.config.scaling_factor).sample
    mse = F.mse_loss(y, x)
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(y), gradients(x), strict=True))
    return F.l1_loss(y, x) + 2 * mse + edges, {"mse": mse}


def train(work: Path, minutes: float) -> None:
    """Train for this many minutes; an unfinished run is resumed."""
    vae = load_vae(work, sharpened=False).to(memory_format=torch.channels_last)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    run = TimedRun(work, "decoder", vae, minutes=minutes, rate=1e-3, ema=0.995, decay=1e-4)
    latents = load_latents(work)
    pictures = pool.load(work / "pool", "pictures")
    rng = np.random.default_rng([8, run.steps])
    while not run.done:
        chosen = rng.integers(len(pictures), size=BATCH)
        clean = latents[chosen].float()
        loss, parts = losses(
            vae, clean + NOISE * torch.randn_like(clean), to_tensor(pictures[chosen])
        )
        run.step(loss, len(chosen), parts)


if __name__ == "__main__":
    train(Path(sys.argv[1]), float(sys.argv[2]))
