"""The scenes of the tiny stack: one coloured, textured shape on a coloured background.

All pictures and captions that the bundled models are trained on and judged by come from here. A
scene is five words (shape, colour, texture, background, style) plus what captions never say: the
position, size and rotation of the object. Captions name a random part of the words, so a reference
picture always has something to add.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 64
SHAPES = ("circle", "square", "triangle", "star", "ring", "heart", "cross", "moon")
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 28),
    "yellow": (250, 222, 60),
    "green": (46, 158, 80),
    "cyan": (72, 202, 228),
    "blue": (38, 70, 200),
    "purple": (128, 50, 170),
    "pink": (248, 150, 200),
    "white": (246, 246, 246),
    "black": (28, 28, 32),
}
COLOURS = tuple(PALETTE)
TEXTURES = ("solid", "striped", "dotted", "checkered")
STYLES = ("plain", "gradient")

VOCABULARY: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "background": COLOURS,
    "style": STYLES,
}
ATTRIBUTES = tuple(VOCABULARY)

# Training never draws one colour of each shape; half of the held-out references use these pairs.
HELD_OUT_PAIRS = frozenset(
    (shape, COLOURS[(3 * index + 2) % len(COLOURS)]) for index, shape in enumerate(SHAPES)
)
_SPLITS = {"train": 0, "validation": 1, "test": 2, "judge": 3}
_SUPERSAMPLE = 2


@dataclass(frozen=True)
class Scene:
    """Five words; centre and radius in pixels of a 64-pixel picture; rotation in radians."""

    shape: str
    colour: str
    texture: str
    background: str
    style: str
    x: float = 32.0
    y: float = 32.0
    radius: float = 21.0
    rotation: float = 0.0

    def labels(self) -> tuple[int, ...]:
        """Index of each word in its vocabulary, in the order of ATTRIBUTES."""
        return tuple(VOCABULARY[name].index(getattr(self, name)) for name in ATTRIBUTES)

    def words(self) -> dict[str, str]:
        """The five words, without the geometry."""
        return {name: getattr(self, name) for name in ATTRIBUTES}

    def geometry(self) -> tuple[float, float, float, float]:
        """Centre x, y and radius as fractions of the picture, and the rotation in radians."""
        return self.x / SIZE, self.y / SIZE, self.radius / SIZE, self.rotation

    def as_dict(self) -> dict[str, object]:
        """All fields, for a recipe."""
        return asdict(self)


# -- sampling ---------------------------------------------------------------------------------


def random_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A random scene; with `held_out`, one whose (shape, colour) pair training never shows."""
    while True:
        shape = SHAPES[rng.integers(len(SHAPES))]
        colour = COLOURS[rng.integers(len(COLOURS))]
        if ((shape, colour) in HELD_OUT_PAIRS) == held_out:
            break
    others = [name for name in COLOURS if name != colour]
    rotation = 0.25 if shape == "moon" else 0.12
    return Scene(
        shape=shape,
        colour=colour,
        texture=TEXTURES[rng.integers(len(TEXTURES))],
        background=others[rng.integers(len(others))],
        style=STYLES[rng.integers(len(STYLES))],
        x=float(32 + rng.uniform(-4, 4)),
        y=float(32 + rng.uniform(-4, 4)),
        radius=float(rng.uniform(20, 26)),
        rotation=float(rng.uniform(-rotation, rotation)),
    )


def stream(split: str, seed: int = 0) -> Iterator[Scene]:
    """Endless seeded scenes of a split: "train", "validation", "test", or "judge".

    The splits are separate random streams. Every second scene has a held-out pair, except in
    "train", which never draws one: the generator has not seen them, the judge has.
    """
    rng = np.random.default_rng([_SPLITS[split], seed])
    index = 0
    while True:
        yield random_scene(rng, held_out=split != "train" and index % 2 == 0)
        index += 1


def change(
    scene: Scene, attributes: Iterable[str], rng: np.random.Generator, *, trained: bool = False
) -> Scene:
    """The same scene with other words for these attributes; object and background stay distinct.

    `trained` avoids the held-out pairs.
    """
    while True:
        words: dict[str, Any] = {}
        for name in attributes:
            others = [word for word in VOCABULARY[name] if word != getattr(scene, name)]
            words[name] = others[rng.integers(len(others))]
        changed = replace(scene, **words)
        clash = changed.colour == changed.background
        if not clash and not (trained and (changed.shape, changed.colour) in HELD_OUT_PAIRS):
            return changed


# -- words ------------------------------------------------------------------------------------


def caption(scene: Scene, named: frozenset[str] | set[str] = frozenset(ATTRIBUTES)) -> str:
    """The `named` attributes as text: "a striped shape on a blue background"; "" for none."""
    if not named:
        return ""
    subject = [scene.texture] if "texture" in named else []
    subject += [scene.colour] if "colour" in named else []
    subject += [scene.shape if "shape" in named else "shape"]
    ground = [scene.style] if "style" in named else []
    ground += [scene.background] if "background" in named else []
    text = "a " + " ".join(subject)
    return f"{text} on a {' '.join(ground)} background" if ground else text


def named_words(text: str) -> dict[str, str]:
    """Attribute -> word, of those that a text names as captions do; the first of each counts.

    A colour before the word background is the background's, any other the object's.
    """
    words = re.findall(r"[a-z]+", text.lower())
    named: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):  # also for no words
        for name, vocabulary in VOCABULARY.items():
            of_ground = following == "background"
            if word in vocabulary and not (word in PALETTE and (name == "background") != of_ground):
                named.setdefault(name, word)
    return named


def random_caption(scene: Scene, rng: np.random.Generator, *, full: float, empty: float) -> str:
    """A full caption, none, or a random part of one; `full` and `empty` are probabilities."""
    draw = rng.random()
    if draw < full:
        return caption(scene)
    if draw < full + empty:
        return ""
    named = {name for name in ATTRIBUTES if rng.random() < 0.5}
    return caption(scene, named) if named else "a shape"


def all_words() -> list[str]:
    """Every word that a caption can contain, sorted; the tokenizer must know them all."""
    words = {word for vocabulary in VOCABULARY.values() for word in vocabulary}
    return sorted(words | {"a", "on", "shape", "background"})


# -- drawing ----------------------------------------------------------------------------------

Array = Any  # float32 arrays; numpy's own types lose track of them


def signed_distance(shape: str, u: Array, v: Array) -> Array:
    """Signed distance to the outline, negative inside, in units of the radius; v points down."""
    if shape == "circle":
        return np.hypot(u, v) - 0.95
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.82
    if shape == "triangle":
        return np.maximum(v - 0.7, 0.8682 * np.abs(u) - 0.4961 * (v + 1.0))
    if shape == "star":
        step = np.pi / 5
        angle = np.abs((np.arctan2(u, -v) + step) % (2 * step) - step)
        radius = np.hypot(u, v)
        inner = 0.47
        edge_x, edge_y = inner * np.cos(step) - 1.05, inner * np.sin(step)
        length = np.hypot(edge_x, edge_y)
        return ((radius * np.cos(angle) - 1.05) * edge_y - radius * np.sin(angle) * edge_x) / length
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.72) - 0.26
    if shape == "heart":
        low = (np.abs(u) + np.abs(v) - 0.8) * np.float32(0.7071)
        return np.minimum(low, np.hypot(np.abs(u) - 0.4, v + 0.4) - 0.5657)
    if shape == "cross":
        long, wide = 0.95, 0.34
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - long, b - wide), np.maximum(a - wide, b - long))
    if shape == "moon":
        return np.maximum(np.hypot(u, v) - 0.98, 0.78 - np.hypot(u - 0.52, v))
    raise KeyError(shape)


def _texture_distance(texture: str, x: Array, y: Array) -> Array | None:
    """Signed distance in pixels to the marks of a texture, in the object's coordinates."""
    if texture == "striped":
        return np.abs((y + 2.75) % 11.0 - 5.5) - 2.6
    if texture == "dotted":
        pitch = 11.0
        return np.hypot((x + 5.5) % pitch - 5.5, (y + 5.5) % pitch - 5.5) - 3.4
    if texture == "checkered":
        cell = 7.5
        a = np.abs((x % (2 * cell)) - cell) - cell / 2
        b = np.abs((y % (2 * cell)) - cell) - cell / 2
        return np.where((a > 0) == (b > 0), -1, 1) * np.minimum(np.abs(a), np.abs(b))
    return None


def second_colour(colour: str) -> Array:
    """The colour of texture marks: pale on dark colours, deep on light ones."""
    base = np.asarray(PALETTE[colour], np.float32)
    return base * 0.42 if _is_light(base) else base + (255 - base) * 0.72


def _is_light(rgb: Array) -> bool:
    return float(rgb @ np.asarray((0.299, 0.587, 0.114), np.float32)) > 125


def _grid(side: int) -> tuple[Array, Array]:
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (SIZE / side)
    return axis[None, :], axis[:, None]


def render(scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """The picture of a scene, uint8 [size, size, 3]."""
    side = size * _SUPERSAMPLE
    sharp = side / SIZE  # samples per pixel of the 64-pixel frame: edges are one sample wide
    ground = background(scene, side)
    x, y = _object_grid(scene, side)
    fill: Array = np.asarray(PALETTE[scene.colour], np.float32)
    marks = _texture_distance(scene.texture, x, y)
    if marks is not None:
        blend = np.clip(0.5 - marks * sharp, 0, 1)[:, :, None]
        fill = fill + (second_colour(scene.colour) - fill) * blend
    inside = _inside(scene, x, y)
    cover = np.clip(0.5 - inside * sharp, 0, 1)[:, :, None]
    picture = ground + (fill - ground) * cover
    small = picture.reshape(size, _SUPERSAMPLE, size, _SUPERSAMPLE, 3).mean(axis=(1, 3))
    pixels: NDArray[np.uint8] = np.clip(small + 0.5, 0, 255).astype(np.uint8)
    return pixels


def background(scene: Scene, size: int = SIZE) -> Array:
    """The colour of each row behind the object, [size, 1, 3], 0..255."""
    base = np.asarray(PALETTE[scene.background], np.float32)
    if scene.style != "gradient":
        return np.broadcast_to(base, (size, 1, 3))
    end = base * 0.45 if _is_light(base) else base + (255 - base) * 0.5
    return base + (end - base) * (_grid(size)[1][:, :, None] / SIZE)


def mask(scene: Scene, size: int = SIZE) -> NDArray[np.bool_]:
    """Which pixels the object covers by half or more, [size, size]."""
    covered: NDArray[np.bool_] = _inside(scene, *_object_grid(scene, size)) <= 0
    return covered


def _object_grid(scene: Scene, side: int) -> tuple[Array, Array]:
    """Coordinates of the samples in pixels of the 64-pixel frame, turned with the object."""
    px, py = _grid(side)
    dx, dy = px - scene.x, py - scene.y
    cos, sin = np.float32(np.cos(scene.rotation)), np.float32(np.sin(scene.rotation))
    return dx * cos + dy * sin, dy * cos - dx * sin


def _inside(scene: Scene, x: Array, y: Array) -> Array:
    """Signed distance to the object's outline in pixels, negative inside."""
    radius = np.float32(scene.radius)
    return signed_distance(scene.shape, x / radius, y / radius) * radius


def draw(scene: Scene, size: int = SIZE) -> Image.Image:
    """The picture of a scene as an RGB image."""
    return Image.fromarray(render(scene, size))
