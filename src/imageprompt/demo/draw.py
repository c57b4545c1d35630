"""`imageprompt demo --draw`: a folder of captioned scenes to train on, and held-out ones."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from imageprompt.demo import scenes
from imageprompt.errors import OptionError
from imageprompt.files import check_folder

TRAIN, HELD_OUT = "train", "held-out"
MOST = 1_000_000
DEFAULT_COUNT, HELD_OUT_COUNT = 4000, 24


def draw_folder(folder: Path, count: int = DEFAULT_COUNT, *, seed: int = 0) -> list[Path]:
    """Write `train/` and `held-out/`: numbered PNGs, each with its full caption in a .txt file.

    The same count and seed draw the same files; those that are there are left alone. Returns the
    two folders. Raises OptionError.
    """
    if not 1 <= count <= MOST:
        raise OptionError(f"count {count}", rule=f"a whole number from 1 to {MOST}")
    top = check_folder(folder)
    parts = ((TRAIN, "train", count), (HELD_OUT, "validation", HELD_OUT_COUNT))
    for name, split, number in parts:
        (top / name).mkdir(parents=True, exist_ok=True)
        for index, scene in enumerate(islice(scenes.stream(split, seed), number)):
            _write(scene, top / name / f"{index:06}.png")
    return [top / name for name, _, _ in parts]


def _write(scene: scenes.Scene, path: Path) -> None:
    """The caption first: a picture that is there is complete.

    Nothing is synced: that would take a minute for a thousand pictures, which are drawn in seconds.
    """
    if path.exists():
        return
    path.with_suffix(".txt").write_text(f"{scenes.caption(scene)}\n", encoding="utf-8")
    temporary = path.with_suffix(".tmp")
    scenes.draw(scene).save(temporary, format="PNG")
    temporary.replace(path)
