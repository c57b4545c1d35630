"""Photographs that installed packages ship, as luminances; some are held out whole.

scikit-image, scikit-learn and matplotlib have them; none of the three is imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TRAIN = (
    "skimage/data/astronaut.png",
    "skimage/data/chelsea.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
    "skimage/data/coins.png",
    "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
)
HELD_OUT = (
    "skimage/data/coffee.png",
    "skimage/data/camera.png",
    "sklearn/datasets/images/china.jpg",
)
SIDE = 256  # pixels of the shorter side


def collect(target: Path) -> None:
    """Write the luminances of all photographs to an npz file."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{split}-{index}": _luminance(_find(name))
        for split, names in (("train", TRAIN), ("held-out", HELD_OUT))
        for index, name in enumerate(names)
    }
    temporary = target.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, allow_pickle=False, **arrays)
    temporary.replace(target)


def load(source: Path, *, held_out: bool = False) -> list[NDArray[np.float32]]:
    """The photographs of one kind as `scenes.render` takes them."""
    prefix = "held-out-" if held_out else "train-"
    with np.load(source) as found:
        names = sorted(name for name in found if name.startswith(prefix))
        return [found[name].astype(np.float32) / 255 for name in names]


def _find(name: str) -> Path:
    package, _, inside = name.partition("/")
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / inside).is_file():
            return Path(folder) / inside
    raise SystemExit(f"{name} is missing: install scikit-image, scikit-learn and matplotlib")


def _luminance(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        grey = image.convert("L")
    scale = SIDE / min(grey.size)
    size = (round(grey.width * scale), round(grey.height * scale))
    return np.asarray(grey.resize(size, Image.Resampling.LANCZOS))
