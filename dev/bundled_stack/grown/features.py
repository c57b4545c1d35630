"""Encode the references of the grown world's adapter: the pool, and copies with words changed.

A caption that names the changed words of the target, beside the copy as its reference, teaches the
adapter that text wins in what it names, as in the easy world.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundled_stack.checkpoints import save_atomic
from bundled_stack.grown import pool, vision
from imageprompt.demo import photographs
from imageprompt.demo import scenes_128 as scenes


def changed_copies(
    chosen: list[scenes.Scene], seed: int
) -> list[tuple[scenes.Scene, frozenset[str]]]:
    """A copy of each scene, and the one or two of its keys that differ."""
    rng = np.random.default_rng([6, seed])
    copies = []
    for scene in chosen:
        names = [key for key in scenes.keys(scene) if scene.place or not key.startswith("size")]
        picks = rng.permutation(names)[: 1 + int(rng.random() < 0.35)]
        copy = scene
        for key in picks:
            copy = scenes.change(copy, str(key), rng, trained=True)
        copies.append((copy, frozenset(map(str, picks))))
    return copies


@torch.no_grad()
def encode(tower: Any, pictures: NDArray[np.uint8]) -> dict[str, Tensor]:
    """image_embeds [n, 128] and hidden_states[-2] [n, 257, 128] of pictures, in float16."""
    embeds, hidden = [], []
    for part in torch.from_numpy(pictures).split(64):
        out = tower(pool.to_float(part), output_hidden_states=True)
        embeds.append(out.image_embeds.half())
        hidden.append(out.hidden_states[-2].half())
    return {"embeds": torch.cat(embeds), "hidden": torch.cat(hidden)}


def encode_part(work: Path, part: int, parts: int, count: int, total: int) -> None:
    """Features of one part of the first `count` of `total` pictures, and of changed copies."""
    target = work / f"features-{count}-{part}.ckpt"
    if target.exists():
        return
    found, tower = photographs.load(), vision.load(work)
    rows = range(part * count // parts, (part + 1) * count // parts)
    chosen = list(islice(scenes.stream("train"), rows.start, rows.stop))
    pictures = np.load(work / f"train-{total}.npy", mmap_mode="r")[rows.start : rows.stop]
    same = encode(tower, np.array(pictures))
    copies = changed_copies(chosen, part)
    other = encode(tower, np.stack([scenes.render(copy, found) for copy, _ in copies]))
    state = {f"same_{name}": value for name, value in same.items()}
    state |= {f"other_{name}": value for name, value in other.items()}
    save_atomic(state, target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("part", type=int)
    parser.add_argument("parts", type=int)
    parser.add_argument("--count", type=int, default=24_000, help="references")
    parser.add_argument("--total", type=int, default=48_000, help="pictures in the pool")
    options = vars(parser.parse_args())
    encode_part(**options)
