"""A pool of drawn scenes on disk; the scenes themselves are drawn again from their stream."""

from __future__ import annotations

from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imageprompt.demo import photographs
from imageprompt.demo import scenes_128 as scenes


def make(work: Path, split: str, count: int, processes: int = 1) -> list[scenes.Scene]:
    """Draw the pictures of a split unless they are there: uint8 [n, 128, 128, 3]; its scenes."""
    found = list(islice(scenes.stream(split), count))
    target = work / f"{split}-{count}.npy"
    if not target.exists():
        parts = [(split, found[start::processes]) for start in range(processes)]
        pictures = np.empty((count, scenes.SIZE, scenes.SIZE, 3), np.uint8)
        if processes == 1:
            pictures[:] = _render(parts[0])
        else:
            with get_context("spawn").Pool(processes) as workers:
                for start, part in enumerate(workers.imap(_render, parts)):
                    pictures[start::processes] = part
        temporary = target.with_suffix(".tmp.npy")
        np.save(temporary, pictures)
        temporary.replace(target)
    return found


def load(work: Path, split: str, count: int) -> Tensor:
    """The pictures of `make` as a tensor, uint8 [n, 128, 128, 3]."""
    return torch.from_numpy(np.load(work / f"{split}-{count}.npy"))


def to_float(pictures: Tensor) -> Tensor:
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in -1..1, on the same device."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def chances(chosen: list[scenes.Scene]) -> NDArray[np.float64]:
    """How often to take each scene, sum 1: small objects, and two of them, are harder to draw."""
    small = [sum(thing.size == "small" for thing in scene.things) for scene in chosen]
    weights = np.array([len(scene.things) for scene in chosen]) + small
    return np.asarray(weights / weights.sum())


def _render(part: tuple[str, list[scenes.Scene]]) -> NDArray[Any]:
    split, chosen = part
    held_out = split in ("validation", "test")
    found = photographs.load(held_out=held_out)
    return np.stack([scenes.render(scene, found) for scene in chosen])
