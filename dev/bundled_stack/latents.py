"""Encode the pool with the trained autoencoder, after centring and scaling its latents."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundled_stack import pool
from bundled_stack.checkpoints import load_state, save_atomic
from bundled_stack.vae import build, to_tensor


@torch.no_grad()
def centre(vae: Any, mean: Tensor) -> None:
    """Move the mean of the latents to zero, in the stock 1x1 convolutions on both sides of them."""
    channels = len(mean)
    vae.quant_conv.bias[:channels] -= mean
    weight = vae.post_quant_conv.weight[:, :, 0, 0]
    vae.post_quant_conv.bias += weight @ mean


@torch.no_grad()
def finish_vae(work: Path) -> None:
    """Write `vae-final.ckpt`: EMA weights, centred latents and the scaling factor."""
    if (work / "vae-final.ckpt").exists():
        return
    state = load_state(work / "vae.ckpt")
    vae = build().eval()
    vae.load_state_dict(state["model"] | state["ema"]["average"])
    some = to_tensor(np.load(work / "pool" / "pictures-0.npy", mmap_mode="r")[:1024])
    means = torch.cat([vae.encode(part).latent_dist.mode() for part in torch.split(some, 64)])
    centre(vae, means.mean((0, 2, 3)))
    means = means - means.mean((0, 2, 3), keepdim=True)
    save_atomic(
        {"model": vae.state_dict(), "scaling_factor": float(1 / means.std())},
        work / "vae-final.ckpt",
    )


def load_vae(work: Path, *, sharpened: bool = True) -> Any:
    """The finished autoencoder, with the sharpened decoder if that is trained."""
    state = load_state(work / "vae-final.ckpt")
    vae = build().eval()
    vae.load_state_dict(state["model"])
    if sharpened and (work / "decoder.ckpt").exists():
        better = load_state(work / "decoder.ckpt")
        vae.load_state_dict(better["model"] | better["ema"]["average"])
    vae.register_to_config(scaling_factor=state["scaling_factor"])
    return vae.requires_grad_(False)


@torch.no_grad()
def encode_shards(work: Path, part: int, parts: int, vae: Any) -> None:
    """Encode every `parts`-th shard, starting at `part`: float16 [n, 16, 8, 8], scaled."""
    scale = vae.config.scaling_factor
    for index in pool.shards(work / "pool")[part::parts]:
        target = work / f"latents-{index}.npy"
        if target.exists():
            continue
        pictures = np.load(work / "pool" / f"pictures-{index}.npy", mmap_mode="r")
        found = [
            (vae.encode(to_tensor(pictures[start : start + 128])).latent_dist.mode() * scale).half()
            for start in range(0, len(pictures), 128)
        ]
        temporary = target.with_suffix(".tmp.npy")
        np.save(temporary, torch.cat(found).numpy())
        temporary.replace(target)


def load_latents(work: Path) -> Tensor:
    """All latents of the pool in memory, float16 [n, 16, 8, 8]."""
    found = [np.load(work / f"latents-{index}.npy") for index in pool.shards(work / "pool")]
    return torch.from_numpy(np.concatenate(found))


if __name__ == "__main__":
    finish_vae(Path(sys.argv[1]))
    encode_shards(
        Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), load_vae(Path(sys.argv[1]))
    )
