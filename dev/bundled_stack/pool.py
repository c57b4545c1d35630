"""A pool of drawn training scenes on disk, so that no training loop waits for drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.demo import scenes

SHARD = 16_384
SHARDS = 6


def make_shard(folder: Path, index: int, split: str = "train") -> None:
    """Draw one shard: pictures uint8 [n, 64, 64, 3], labels uint8 [n, 5], geometry [n, 4]."""
    if (folder / f"geometry-{index}.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    stream = scenes.stream(split, seed=index)
    batch = [next(stream) for _ in range(SHARD)]
    parts: dict[str, NDArray[Any]] = {
        "pictures": np.stack([scenes.render(scene) for scene in batch]),
        "labels": np.asarray([scene.labels() for scene in batch], np.uint8),
        "geometry": np.asarray([scene.geometry() for scene in batch], np.float32),
    }
    for name, array in parts.items():
        target = folder / f"{name}-{index}.npy"
        temporary = target.with_suffix(".tmp.npy")
        np.save(temporary, array)
        temporary.replace(target)


def shards(folder: Path) -> list[int]:
    """The existing shards, in order."""
    return [index for index in range(SHARDS) if (folder / f"geometry-{index}.npy").exists()]


def load(folder: Path, name: str) -> NDArray[Any]:
    """All shards of one part, concatenated in memory."""
    return np.concatenate([np.load(folder / f"{name}-{index}.npy") for index in shards(folder)])


def scene_of(labels: NDArray[np.uint8], geometry: NDArray[np.float32]) -> scenes.Scene:
    """The scene of one row of the pool."""
    words = {
        name: scenes.VOCABULARY[name][int(label)]
        for name, label in zip(scenes.ATTRIBUTES, labels, strict=True)
    }
    x, y, radius, rotation = (float(value) for value in geometry)
    side = scenes.SIZE
    return scenes.Scene(**words, x=x * side, y=y * side, radius=radius * side, rotation=rotation)


def load_scenes(folder: Path) -> list[scenes.Scene]:
    """The scenes of all shards."""
    rows = zip(load(folder, "labels"), load(folder, "geometry"), strict=True)
    return [scene_of(*row) for row in rows]
