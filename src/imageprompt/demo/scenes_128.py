"""The larger scenes: one or two objects of several sizes, anywhere on 128x128 pixels.

Shapes, colours and held-out pairs are those of `scenes`. New are sizes, places, relations
("a red star left of a blue ring"), noisy and photographic textures, and photographs as backgrounds.
Every scene is drawn from its seeds and a list of photographs; whole photographs are held out.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imageprompt.demo.scenes import (
    COLOURS,
    HELD_OUT_PAIRS,
    PALETTE,
    SHAPES,
    second_colour,
    signed_distance,
)

SIZE = 128
TEXTURES = ("solid", "striped", "dotted", "checkered", "noisy", "photographic")
STYLES = ("plain", "gradient", "photographic")
SIZES = ("small", "medium", "large")
PLACES = (
    *("top left", "top", "top right"),
    *("left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
OBJECT_WORDS: dict[str, tuple[str, ...]] = {
    "size": SIZES,
    "texture": TEXTURES,
    "colour": COLOURS,
    "shape": SHAPES,
}
GROUND_WORDS: dict[str, tuple[str, ...]] = {"style": STYLES, "background": COLOURS}

# Radius in pixels by size: of an object alone, and of one of two.
RADII = {"small": (15.0, 19.0), "medium": (25.0, 30.0), "large": (36.0, 41.0)}
PAIR_RADII = {"small": (13.0, 16.0), "medium": (21.0, 25.0)}
MARKS = {"small": 0.75, "medium": 1.0, "large": 1.35}  # scale of stripes, dots and squares
REACH = 1.06  # of the farthest point of a shape, in radii
MARGIN = 2.0
_SPLITS = {"train": 0, "validation": 1, "test": 2, "judge": 3}
_SUPERSAMPLE = 2

Array = Any  # float32 arrays; numpy's own types lose track of them
Photos = Sequence[NDArray[np.float32]]
"""Luminances 0..1 of photographs, [height, width] each."""


@dataclass(frozen=True)
class Thing:
    """An object: four words; centre and radius in pixels; rotation in radians; seed of texture."""

    size: str
    texture: str
    colour: str
    shape: str
    x: float
    y: float
    radius: float
    rotation: float
    seed: int


@dataclass(frozen=True)
class Scene:
    """One object at a place, or two with the relation of the first to the second."""

    things: tuple[Thing, ...]
    background: str
    style: str
    seed: int
    place: str = ""
    relation: str = ""

    def in_reading_order(self) -> tuple[Thing, ...]:
        """The objects from left to right, or from top to bottom: what a picture can tell."""
        return self.things[::-1] if self.relation in ("right of", "below") else self.things

    def words(self) -> dict[str, str]:
        """Every word that the picture shows: "first colour", ..., "background"."""
        found = {
            f"{which} {name}": getattr(thing, name)
            for which, thing in zip(("first", "second"), self.in_reading_order(), strict=False)
            for name in OBJECT_WORDS
        }
        row = {"right of": "left of", "below": "above"}.get(self.relation, self.relation)
        found |= {"relation": row} if row else {"place": self.place}
        return found | {"style": self.style, "background": self.background}


# ── sampling ──────────────────────────────────────────────────────────────────────────────────────


def random_scene(rng: np.random.Generator, *, objects: int, held_out: bool = False) -> Scene:
    """A random scene; `held_out`: the first object has a pair that training never shows."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < objects:
        pair = (_any(SHAPES, rng), _any(COLOURS, rng))
        other = not pairs or (pair[0] != pairs[0][0] and pair[1] != pairs[0][1])
        if other and (pair in HELD_OUT_PAIRS) == (held_out and not pairs):
            pairs.append(pair)
    free = [colour for colour in COLOURS if colour not in [pair[1] for pair in pairs]]
    place, relation = ("", _any(RELATIONS, rng)) if objects == 2 else (_any(PLACES, rng), "")
    sizes = [_any(tuple(PAIR_RADII) if relation else SIZES, rng) for _ in pairs]
    radii = [float(rng.uniform(*(PAIR_RADII if relation else RADII)[size])) for size in sizes]
    centres = _pair_centres(radii, relation, rng) if relation else [_centre(radii[0], place, rng)]
    things = []
    for (shape, colour), size, radius, centre in zip(pairs, sizes, radii, centres, strict=True):
        turn = 0.25 if shape == "moon" else 0.12
        things.append(
            Thing(
                size=size,
                texture=_any(TEXTURES, rng),
                colour=colour,
                shape=shape,
                x=centre[0],
                y=centre[1],
                radius=radius,
                rotation=float(rng.uniform(-turn, turn)),
                seed=int(rng.integers(2**31)),
            )
        )
    return Scene(
        things=tuple(things),
        background=_any(free, rng),
        style=_any(STYLES, rng),
        seed=int(rng.integers(2**31)),
        place=place,
        relation=relation,
    )


def stream(split: str, seed: int = 0) -> Iterator[Scene]:
    """Endless seeded scenes of a split; one and two objects in turn.

    Half of the scenes have a held-out pair, except in "train", which never draws one. "train" and
    "judge" take the photographs for training, the others the held-out ones.
    """
    rng = np.random.default_rng([_SPLITS[split], seed, SIZE])
    index = 0
    while True:
        held_out = split != "train" and index % 4 < 2
        yield random_scene(rng, objects=1 + index % 2, held_out=held_out)
        index += 1


def _any(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _centre(radius: float, place: str, rng: np.random.Generator) -> tuple[float, float]:
    """A centre at the place: the object stays inside the picture and off the places beside it."""
    room = SIZE / 2 - MARGIN - REACH * radius
    row, column = divmod(PLACES.index(place), 3)

    def along(side: int) -> float:
        offset = rng.uniform(0.65, 1.0) * room if side else rng.uniform(-0.15, 0.15) * room
        return float(SIZE / 2 + (side or 1) * offset)

    return along(column - 1), along(row - 1)


def _pair_centres(
    radii: list[float], relation: str, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Two centres side by side, or one above the other; the objects never touch."""
    reaches = [REACH * radius for radius in radii]
    if relation in ("right of", "below"):
        reaches.reverse()
    slack = SIZE - 2 * (MARGIN + sum(reaches))
    gap = float(rng.uniform(5, min(slack, 24)))
    start = MARGIN + float(rng.uniform(0, slack - gap))
    along = [start + reaches[0], start + 2 * reaches[0] + gap + reaches[1]]
    if relation in ("right of", "below"):
        along.reverse()
    room = SIZE / 2 - MARGIN - max(reaches)
    level = float(rng.uniform(-room, room))
    across = [SIZE / 2 + float(np.clip(level + rng.uniform(-6, 6), -room, room)) for _ in range(2)]
    pairs = zip(along, across, strict=True)
    return [(a, b) if relation in ("left of", "right of") else (b, a) for a, b in pairs]


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def keys(scene: Scene) -> list[str]:
    """What a caption can name: "colour" of the first object, "colour 2" of the second, "style"."""
    own = [f"{name}{suffix}" for suffix in ("", " 2")[: len(scene.things)] for name in OBJECT_WORDS]
    return [*own, *(["place"] if scene.place else []), *GROUND_WORDS]


def caption(scene: Scene, named: Container[str] | None = None) -> str:
    """The full caption, or one that names only these `keys`; a relation is always told."""
    named = keys(scene) if named is None else named
    text = f"a {_subject(scene.things[0], '', named)}"
    if scene.relation:
        text += f" {scene.relation} a {_subject(scene.things[1], ' 2', named)}"
    elif "place" in named:
        text += f" at the {scene.place}"
    ground = [getattr(scene, name) for name in GROUND_WORDS if name in named]
    return f"{text} on a {' '.join(ground)} background" if ground else text


def _subject(thing: Thing, suffix: str, named: Container[str]) -> str:
    adjectives = ("size", "texture", "colour")
    words = [getattr(thing, name) for name in adjectives if name + suffix in named]
    return " ".join([*words, thing.shape if "shape" + suffix in named else "shape"])


def random_caption(scene: Scene, rng: np.random.Generator, *, full: float, empty: float) -> str:
    """A full caption, none, or one of a random half; `full` and `empty` are probabilities."""
    draw = rng.random()
    if draw < full:
        return caption(scene)
    if draw < full + empty:
        return ""
    return caption(scene, {key for key in keys(scene) if rng.random() < 0.5})


def change(scene: Scene, key: str, rng: np.random.Generator, *, trained: bool = False) -> Scene:
    """A copy with another word for one of its `keys`; `trained`: no pair that is held out.

    Size and place can be changed of an object alone; its place, or size, stays.
    """
    name, _, which = key.partition(" ")
    if name in ("style", "background"):
        words: Sequence[str] = STYLES if name == "style" else _free_colours(scene)
        changed: dict[str, Any] = {name: _other(words, getattr(scene, name), rng)}
        return replace(scene, **changed)
    index = int(which or 1) - 1
    thing = scene.things[index]
    if name in ("size", "place"):
        size, place = thing.size, scene.place
        if name == "size":
            size = _other(SIZES, size, rng)
        else:
            place = _other(PLACES, place, rng)
        radius = float(rng.uniform(*RADII[size])) if name == "size" else thing.radius
        x, y = _centre(radius, place, rng)
        moved = replace(thing, size=size, x=x, y=y, radius=radius)
        return replace(scene, things=(moved,), place=place)
    words = {
        "texture": TEXTURES,
        "colour": _free_colours(scene),
        "shape": [word for word in SHAPES if word not in [other.shape for other in scene.things]],
    }[name]
    while True:
        changed = {name: _other(words, getattr(thing, name), rng)}
        new = replace(thing, **changed)
        if name == "texture" or not trained or (new.shape, new.colour) not in HELD_OUT_PAIRS:
            break
    things = tuple(new if other is thing else other for other in scene.things)
    return replace(scene, things=things)


def _free_colours(scene: Scene) -> list[str]:
    taken = {scene.background, *(thing.colour for thing in scene.things)}
    return [colour for colour in COLOURS if colour not in taken]


def _other(words: Sequence[str], word: str, rng: np.random.Generator) -> str:
    return _any([other for other in words if other != word], rng)


def reversed_relation(scene: Scene) -> Scene:
    """The same picture told from the second object: "a blue ring right of a red star"."""
    relation = OPPOSITE[scene.relation]
    return Scene(scene.things[::-1], scene.background, scene.style, scene.seed, relation=relation)


def all_words() -> list[str]:
    """Every word that a caption can contain, sorted; the tokenizer must know them all."""
    groups = (SIZES, TEXTURES, COLOURS, SHAPES, STYLES, PLACES, RELATIONS)
    words = {word for group in groups for phrase in group for word in phrase.split()}
    return sorted(words | {"a", "at", "the", "on", "shape", "background"})


# ── drawing ───────────────────────────────────────────────────────────────────────────────────────


def render(scene: Scene, photos: Photos) -> NDArray[np.uint8]:
    """The picture of a scene, uint8 [128, 128, 3]."""
    side = SIZE * _SUPERSAMPLE
    picture = _ground(scene, photos)
    for thing in scene.things:
        x, y = _object_grid(thing, side)
        marks = _marks(thing, x, y, photos)[:, :, None]
        base: Array = np.asarray(PALETTE[thing.colour], np.float32)
        fill = base + (second_colour(thing.colour) - base) * marks
        cover = np.clip(0.5 - _inside(thing, x, y) * _SUPERSAMPLE, 0, 1)[:, :, None]
        picture = picture + (fill - picture) * cover
    small = picture.reshape(SIZE, _SUPERSAMPLE, SIZE, _SUPERSAMPLE, 3).mean(axis=(1, 3))
    pixels: NDArray[np.uint8] = np.clip(small + 0.5, 0, 255).astype(np.uint8)
    return pixels


def mask(thing: Thing, side: int = SIZE) -> NDArray[np.bool_]:
    """Which of side x side cells an object covers at their centre, [side, side]."""
    covered: NDArray[np.bool_] = _inside(thing, *_object_grid(thing, side)) <= 0
    return covered


def draw(scene: Scene, photos: Photos) -> Image.Image:
    """The picture of a scene as an RGB image."""
    return Image.fromarray(render(scene, photos))


def _ground(scene: Scene, photos: Photos) -> Array:
    """The picture without objects, float32, 0..255."""
    side = SIZE * _SUPERSAMPLE
    base: Array = np.asarray(PALETTE[scene.background], np.float32)
    if scene.style == "gradient":
        share: Array = np.linspace(0, 0.75, side, dtype=np.float32)[:, None]
    elif scene.style == "photographic":
        share = 0.6 * _photo(photos, scene.seed)
    else:
        share = np.zeros((1, 1), np.float32)
    picture = base + (second_colour(scene.background) - base) * share[:, :, None]
    return np.broadcast_to(picture, (side, side, 3))


def _marks(thing: Thing, x: Array, y: Array, photos: Photos) -> Array:
    """How much of the second colour each sample has, 0..1."""
    scale = MARKS[thing.size]
    if thing.texture == "noisy":
        return _noise(thing.seed, scale)
    if thing.texture == "photographic":
        return 0.85 * _photo(photos, thing.seed, (thing.x, thing.y), REACH * thing.radius)
    if thing.texture == "striped":
        distance = np.abs((y / scale + 3.0) % 12.0 - 6.0) - 2.9
    elif thing.texture == "dotted":
        a, b = (np.abs((axis / scale + 6.0) % 12.0 - 6.0) for axis in (x, y))
        distance = np.hypot(a, b) - 3.6
    elif thing.texture == "checkered":
        cell = 8.0
        a, b = (np.abs((axis / scale) % (2 * cell) - cell) - cell / 2 for axis in (x, y))
        distance = np.where((a > 0) == (b > 0), -1, 1) * np.minimum(np.abs(a), np.abs(b))
    else:
        return np.zeros_like(x + y)
    return np.clip(0.5 - distance * scale * _SUPERSAMPLE, 0, 1)


def _noise(seed: int, scale: float) -> Array:
    """Blotches without direction, three to five pixels wide, of every share between the colours."""
    cells = round(SIZE / (3.4 * scale))
    field = np.random.default_rng(seed).random((cells, cells), np.float32)
    side = SIZE * _SUPERSAMPLE
    smooth = Image.fromarray(field).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip((np.asarray(smooth) - 0.5) * 1.8 + 0.5, 0, 1)


def _photo(
    photos: Photos, seed: int, centre: tuple[float, float] | None = None, reach: float = SIZE / 2
) -> Array:
    """Part of a photograph over the picture, or over a square around an object; shares 0..1.

    The shares are spread evenly: no part is flat. Of six parts, the one with most contrast.
    """
    rng = np.random.default_rng(seed)
    photo = photos[int(rng.integers(len(photos)))]
    span = round(min(photo.shape) * rng.uniform(0.45, 0.8))
    parts = []
    for _ in range(6):
        top, left = (rng.integers(length - span + 1) for length in photo.shape)
        parts.append(photo[top : top + span, left : left + span])
    best = max(parts, key=lambda part: float(part.std()))
    best = best[:, ::-1] if rng.random() < 0.5 else best
    width = max(2, round(2 * reach))
    small = Image.fromarray(np.ascontiguousarray(best)).resize((width, width), Image.Resampling.BOX)
    even = np.argsort(np.argsort(np.asarray(small), axis=None)).reshape(width, width)
    shares = (even.astype(np.float32) / even.size) ** 1.4
    large = np.asarray(
        Image.fromarray(shares).resize((width * _SUPERSAMPLE,) * 2, Image.Resampling.BILINEAR)
    )
    side = SIZE * _SUPERSAMPLE
    if centre is None:
        return large
    whole = np.zeros((side, side), np.float32)
    left, top = (round((value - reach) * _SUPERSAMPLE) for value in centre)
    rows, columns = slice(max(top, 0), top + len(large)), slice(max(left, 0), left + len(large))
    target = whole[rows, columns]
    target[:] = large[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
    return whole


def _object_grid(thing: Thing, side: int) -> tuple[Array, Array]:
    """Coordinates of the samples in pixels, turned with the object."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (SIZE / side)
    dx, dy = axis[None, :] - thing.x, axis[:, None] - thing.y
    cos, sin = np.float32(np.cos(thing.rotation)), np.float32(np.sin(thing.rotation))
    return dx * cos + dy * sin, dy * cos - dx * sin


def _inside(thing: Thing, x: Array, y: Array) -> Array:
    """Signed distance to the outline in pixels, negative inside."""
    radius = np.float32(thing.radius)
    return signed_distance(thing.shape, x / radius, y / radius) * radius
