"""Encode the references for adapter training: the pool, and copies with one or two words changed.

A copy has the same geometry. A caption that names the changed words of the target, beside such a
reference, teaches the adapter that text wins in what it names. The paper does not do this; README
says so.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundled_stack import pool
from bundled_stack.export import load_ema
from bundled_stack.vae import to_tensor
from bundled_stack.vision import VisionWithHeads
from imageprompt.demo import scenes


@torch.no_grad()
def encode(tower: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """image_embeds [n, 128] and hidden_states[-2] [n, 65, 128] of pixels, in float16."""
    embeds, hidden = [], []
    for part in torch.split(x, 128):
        out = tower(part, output_hidden_states=True)
        embeds.append(out.image_embeds.half())
        hidden.append(out.hidden_states[-2].half())
    return torch.cat(embeds), torch.cat(hidden)


def changed_copies(index: int, labels: Any, geometry: Any) -> tuple[np.ndarray[Any, Any], Tensor]:
    """Pictures of the changed copies of a shard, and which words changed, bool [n, 5]."""
    rng = np.random.default_rng([6, index])
    pictures, changed = [], torch.zeros(len(labels), len(scenes.ATTRIBUTES), dtype=torch.bool)
    for row, (label, place) in enumerate(zip(labels, geometry, strict=True)):
        picks = rng.permutation(len(scenes.ATTRIBUTES))[: 1 + (rng.random() < 0.35)]
        names = [scenes.ATTRIBUTES[i] for i in picks]
        scene = scenes.change(pool.scene_of(label, place), names, rng, trained=True)
        pictures.append(scenes.render(scene))
        changed[row, picks] = True
    return np.stack(pictures), changed


def encode_shards(work: Path, part: int, parts: int, tower: Any) -> None:
    """Encode every `parts`-th shard; finished shards are skipped."""
    folder = work / "pool"
    for index in pool.shards(folder)[part::parts]:
        target = work / f"features-{index}.pt"
        if target.exists():
            continue
        pictures = np.load(folder / f"pictures-{index}.npy", mmap_mode="r")
        labels, geometry = (np.load(folder / f"{n}-{index}.npy") for n in ("labels", "geometry"))
        other, changed = changed_copies(index, labels, geometry)
        same_embeds, same_hidden = encode(tower, to_tensor(pictures))
        other_embeds, other_hidden = encode(tower, to_tensor(other))
        state = {
            "same_embeds": same_embeds,
            "same_hidden": same_hidden,
            "other_embeds": other_embeds,
            "other_hidden": other_hidden,
            "changed": changed,
        }
        temporary = target.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(target)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    trained = load_ema(folder, "vision", VisionWithHeads())
    encode_shards(folder, int(sys.argv[2]), int(sys.argv[3]), trained.tower)
