"""References for `imageprompt probe` on the bundled stack, and texts that contradict them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from PIL.Image import Image

from imageprompt.demo import scenes

DEFAULT_COUNT = 24
NAMED = (("shape",), ("colour", "texture", "background", "style"))
"""What the texts name otherwise than the references show it: by turns the shape, and the look."""


def drawn(
    count: int, *, seed: int = 0, named: Sequence[Sequence[str]] = NAMED
) -> tuple[list[Image], list[str]]:
    """Held-out scenes, and texts that contradict them in what is `named`, by turns."""
    found = list(islice(scenes.stream("test", seed=20_000 + seed), count))
    rng = np.random.default_rng(seed)
    texts = []
    for index, scene in enumerate(found):
        names = named[index // 2 % len(named)]  # every second scene is a pair never trained
        texts.append(scenes.caption(scenes.change(scene, names, rng), set(names)))
    return [scenes.draw(scene) for scene in found], texts
