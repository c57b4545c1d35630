"""What each bundled stack draws: held-out references, texts that contradict them, and the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from imageprompt.core.bundled import NAME, SD3, SD3_128
from imageprompt.demo import scenes, scenes_128

if TYPE_CHECKING:
    from PIL import Image

OVERRIDES = ("shape", "colour", "texture", "background")
OVERRIDES_128 = ("colour", "place", "texture 2", "background", "shape", "size")
"""The words that texts change, row by row; of larger scenes those that it has."""
PHOTOGRAPHIC = "photographic"


@dataclass(frozen=True)
class DemoReference:
    """A reference, the words that it shows, and a text that names another word for one of them.

    `expected` are the words of a picture that obeys the text and keeps the rest.
    """

    scene: dict[str, Any]
    picture: Image.Image
    words: dict[str, str]
    changed: str
    text: str
    expected: dict[str, str]


@dataclass(frozen=True)
class World:
    """The references of a bundled stack by seed and count, and how its pictures are read.

    `prompt` says nothing: the picture comes from the reference, or from chance. `groups` are the
    lines of the table, and for each the words that count in it.
    """

    prompt: str
    references: Callable[[int, int], list[DemoReference]]
    classify: Callable[[Sequence[Image.Image]], list[dict[str, str]]]
    groups: dict[str, tuple[str, ...]]


# ── one object on 64x64 pixels ──────────────────────────────────────────────────────────────────


def _small(seed: int, count: int) -> list[DemoReference]:
    rng = np.random.default_rng(seed)
    found = []
    for index, scene in enumerate(_varied(seed, count)):
        name = OVERRIDES[index % len(OVERRIDES)]
        other = scenes.change(scene, [name], rng)
        while name == "colour" and other.colour == "orange":  # no caption contains "an"
            other = scenes.change(scene, [name], rng)
        text = scenes.caption(other, {name})
        picture = scenes.draw(scene)
        found.append(
            DemoReference(scene.as_dict(), picture, scene.words(), name, text, other.words())
        )
    return found


def _varied(seed: int, count: int) -> list[scenes.Scene]:
    """Test scenes in order, without those whose shape or texture is already frequent."""
    chosen: list[scenes.Scene] = []
    for scene in islice(scenes.stream("test", seed=10_000 + seed), 400):
        shapes = [other.shape for other in chosen]
        textures = [other.texture for other in chosen]
        even = shapes.count(scene.shape) <= len(chosen) // len(scenes.SHAPES)
        if even and textures.count(scene.texture) <= len(chosen) // len(scenes.TEXTURES):
            chosen.append(scene)
        if len(chosen) == count:
            break
    return chosen


def _read_small(pictures: Sequence[Image.Image]) -> list[dict[str, str]]:
    from imageprompt.demo import judge

    return judge.classify(pictures)


# ── one or two objects on 128x128 pixels ────────────────────────────────────────────────────────


def _large(seed: int, count: int) -> list[DemoReference]:
    rng = np.random.default_rng(seed)
    found = []
    for index, scene in enumerate(islice(_without_photographs(seed), count)):
        known = set(scenes_128.keys(scene)) - ({"size"} if scene.relation else set())
        wanted = OVERRIDES_128[index % len(OVERRIDES_128)]
        key = wanted if wanted in known else "colour"
        other = scenes_128.change(scene, key, rng)
        while _named(other, key) in ("orange", PHOTOGRAPHIC):  # no caption contains "an"
            other = scenes_128.change(scene, key, rng)
        words, expected = scene.words(), other.words()
        (changed,) = (name for name in words if words[name] != expected[name])
        text = scenes_128.caption(other, {key})
        picture = scenes_128.draw(scene, [])
        found.append(DemoReference(asdict(scene), picture, words, changed, text, expected))
    return found


def _without_photographs(seed: int) -> Iterator[scenes_128.Scene]:
    """Test scenes that are drawn without photographs, which the package does not ship."""
    for scene in scenes_128.stream("test", seed=10_000 + seed):
        textures = [thing.texture for thing in scene.things]
        if PHOTOGRAPHIC not in (scene.style, *textures):
            yield scene


def _named(scene: scenes_128.Scene, key: str) -> str:
    name, _, which = key.partition(" ")
    shown = scene.things[int(which or 1) - 1] if name in scenes_128.OBJECT_WORDS else scene
    return str(getattr(shown, name))


def _read_large(pictures: Sequence[Image.Image]) -> list[dict[str, str]]:
    from imageprompt.demo import judge_128

    return judge_128.classify(pictures)


SMALL = World("a shape", _small, _read_small, {name: (name,) for name in scenes.ATTRIBUTES})
LARGE = World(
    "",  # "a shape" would say that there is one object
    _large,
    _read_large,
    {name: (f"first {name}", f"second {name}") for name in scenes_128.OBJECT_WORDS}
    | {"place": ("place", "relation")}
    | {name: (name,) for name in scenes_128.GROUND_WORDS},
)
WORLDS = {NAME: SMALL, SD3: SMALL, SD3_128: LARGE}
