"""Drawn scenes as data: a folder to train on, and references with texts that contradict them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from imageprompt.core.atomic_files import check_folder, sweep, write_atomically
from imageprompt.core.errors import OptionError
from imageprompt.demo import scenes
from imageprompt.demo.scenes import Scene

TRAIN, HELD_OUT = "train", "held-out"
TRAIN_COUNT, HELD_OUT_COUNT = 4000, 24
MAX_COUNT = 1_000_000

REFERENCE_COUNT = 24
NAMED = (("shape",), ("colour", "texture", "background", "style"))
"""Attributes that texts name, in turn: the shape, then the look."""


class DrawnReferences(NamedTuple):
    """References, a text for each, and the attributes that only the reference shows."""

    pictures: list[Image.Image]
    texts: list[str]
    expected: list[dict[str, str]]


def draw_references(
    count: int, *, seed: int = 0, named: Sequence[Sequence[str]] = NAMED
) -> DrawnReferences:
    """Held-out scenes, and texts that name other words for the `named` attributes, in turn."""
    chosen = list(islice(scenes.stream("test", seed=20_000 + seed), count))
    rng = np.random.default_rng(seed)
    texts, expected = [], []
    for index, scene in enumerate(chosen):
        names = named[index // 2 % len(named)]  # every second scene is a pair never trained on
        texts.append(scenes.caption(scenes.change(scene, names, rng), set(names)))
        expected.append({name: word for name, word in scene.words().items() if name not in names})
    return DrawnReferences([scenes.draw(scene) for scene in chosen], texts, expected)


def draw_folder(folder: Path, count: int = TRAIN_COUNT, *, seed: int = 0) -> list[Path]:
    """Write `train/` and `held-out/`: numbered PNGs, each with its full caption in a .txt file.

    The same count and seed draw the same files; existing ones are left alone. Returns the two
    folders. Raises OptionError.
    """
    if not 1 <= count <= MAX_COUNT:
        raise OptionError(f"count {count}", reason=f"not a whole number from 1 to {MAX_COUNT}")
    top = check_folder(folder)
    parts = ((TRAIN, "train", count), (HELD_OUT, "validation", HELD_OUT_COUNT))
    for name, split, number in parts:
        (top / name).mkdir(parents=True, exist_ok=True)
        sweep(top / name)
        for index, scene in enumerate(islice(scenes.stream(split, seed), number)):
            _write(scene, top / name / f"{index:06}.png")
    return [top / name for name, _, _ in parts]


def _write(scene: Scene, path: Path) -> None:
    """The caption first, so an existing picture is complete.

    Nothing is synced: that would take a minute for a thousand pictures, drawn in seconds.
    """
    if path.exists():
        return
    with write_atomically(path.with_suffix(".txt"), durable=False) as temporary:
        temporary.write_text(f"{scenes.caption(scene)}\n", encoding="utf-8")
    with write_atomically(path, durable=False) as temporary:
        scenes.draw(scene).save(temporary, format="PNG")
