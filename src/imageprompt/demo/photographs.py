"""Photographs that installed packages ship, as luminances; some are held out whole.

scikit-image, scikit-learn and matplotlib have them; none of the three is imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imageprompt.core.errors import NotFoundError

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


def load(*, held_out: bool = False) -> list[NDArray[np.float32]]:
    """The photographs of one kind as `scenes_128.render` takes them: [height, width], 0..1.

    Raises NotFoundError if a package is not installed.
    """
    return [_luminance(_find(name)) for name in (HELD_OUT if held_out else TRAIN)]


def _find(name: str) -> Path:
    package, _, inside = name.partition("/")
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / inside).is_file():
            return Path(folder) / inside
    raise NotFoundError(
        f"the photograph {name}",
        reason="comes with a package that is not installed",
        hint="Install scikit-image, scikit-learn and matplotlib.",
    )


def _luminance(path: Path) -> NDArray[np.float32]:
    with Image.open(path) as image:
        grey = image.convert("L")
    scale = SIDE / min(grey.size)
    size = (round(grey.width * scale), round(grey.height * scale))
    return np.asarray(grey.resize(size, Image.Resampling.LANCZOS), np.float32) / np.float32(255)
