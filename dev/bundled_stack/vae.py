"""Train the autoencoder: 64x64 pictures to 8x8 latents of 16 channels (a stock AutoencoderKL)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bundled_stack import pool
from bundled_stack.timed_run import TimedRun

CHANNELS = (16, 32, 64, 128)
CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": list(CHANNELS),
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
    "force_upcast": False,
}


def build() -> Any:
    """The untrained autoencoder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)


def to_tensor(pictures: np.ndarray[Any, Any]) -> Tensor:
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in -1..1, channels last."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, down and across."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def losses(model: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction (L1 + 2 MSE + half the L1 of the gradients) and a small KL term."""
    posterior = model.encode(x).latent_dist
    y = model.decode(posterior.sample()).sample.float()
    mse = F.mse_loss(y, x)
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(y), gradients(x), strict=True))
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
    loss = F.l1_loss(y, x) + 2 * mse + 0.5 * edges + 1e-3 * kl
    return loss, {"mse": mse, "kl": kl}


def batch(pictures: np.ndarray[Any, Any], rng: np.random.Generator, whole: bool) -> Tensor:
    """32x32 crops at 8-pixel steps, or whole pictures."""
    chosen = rng.integers(len(pictures), size=6 if whole else 20)
    if whole:
        return to_tensor(pictures[chosen])
    crops = []
    for index in chosen:
        top, left = rng.integers(0, 33, size=2)
        crops.append(pictures[index, top : top + 32, left : left + 32])
    return to_tensor(np.stack(crops))


def train(work: Path, minutes: float, autocast: bool = False) -> None:
    """Train for this many minutes; an unfinished run is resumed."""
    model = build()
    run = TimedRun(work, "vae", model, minutes=minutes, rate=2e-3, ema=0.997, decay=1e-4, flat=0.1)
    pictures = pool.load(work / "pool", "pictures")
    rng = np.random.default_rng(run.steps)
    while not run.done:
        x = batch(pictures, rng, whole=run.progress > 0.75)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, parts = losses(model, x)
        run.step(loss, len(x), parts)


if __name__ == "__main__":
    train(Path(sys.argv[1]), float(sys.argv[2]))
