"""References for `imageprompt probe` on the bundled stack, and texts that contradict them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL.Image import Image

from imageprompt.demo import scenes

DEFAULT_COUNT = 24
NAMED = (("shape",), ("colour", "texture", "background", "style"))
"""What the texts name otherwise than the references show it: by turns the shape, and the look."""


class Drawn(NamedTuple):
    """References, a text for each, and what each reference shows that its text does not name."""

    references: list[Image]
    texts: list[str]
    shows: list[dict[str, str]]


def drawn(count: int, *, seed: int = 0, named: Sequence[Sequence[str]] = NAMED) -> Drawn:
    """Held-out scenes, and texts that contradict them in what is `named`, by turns."""
    found = list(islice(scenes.stream("test", seed=20_000 + seed), count))
    rng = np.random.default_rng(seed)
    texts, shows = [], []
    for index, scene in enumerate(found):
        names = named[index // 2 % len(named)]  # every second scene is a pair never trained
        texts.append(scenes.caption(scenes.change(scene, names, rng), set(names)))
        shows.append({name: word for name, word in scene.words().items() if name not in names})
    return Drawn([scenes.draw(scene) for scene in found], texts, shows)
