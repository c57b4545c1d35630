"""Drawn bodies: slices through an abdomen with vessels, bowel, bones, and lesions.

A body is a list of ellipses with soft edges, painted over each other. It can be drawn again as a
later scan or a neighbouring slice would show it: moved, bent a little, with lesions that are new
or gone. Phantoms are smoother than people: a gain on them says little about patients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AIR = -1000.0
_EDGE = 0.8  # width of an edge, in pixels


@dataclass(frozen=True)
class Ellipse:
    """Centre, radii in mm from the middle of the slice, angle in radians, HU inside."""

    x: float
    y: float
    a: float
    b: float
    angle: float
    hu: float


@dataclass(frozen=True)
class Body:
    """What a slice shows, from the skin to the lesions, which are painted last."""

    ellipses: tuple[Ellipse, ...]
    lesions: tuple[Ellipse, ...]
    texture: int
    """The seed of the fine mottle, which later scans share."""


# ── drawing of bodies ───────────────────────────────────────────────────────────────────────────


def random_body(rng: np.random.Generator, field_mm: float) -> Body:
    """A body that fits a field of view of that width, with one lesion in an organ."""
    half = field_mm / 2
    wide, high = half * rng.uniform(0.72, 0.9), half * rng.uniform(0.5, 0.68)
    fat, inner = rng.uniform(0.05, 0.14) * half, []
    skin = Ellipse(0, 0, wide, high, 0, rng.uniform(-115, -95))
    wall = Ellipse(0, 0, wide - fat, high - fat, 0, rng.uniform(45, 65))
    cavity = Ellipse(0, -0.02 * half, wide - 1.5 * fat, high - 1.6 * fat, 0, rng.uniform(-105, -60))
    organs = _organs(rng, half, wide, high)
    inner += _bowel(rng, wide, high, half)
    inner += [_inside(rng, wide, high, (0.008, 0.03), (-110, 140), half) for _ in range(90)]
    spine = _spine(rng, half, high)
    ellipses = (skin, wall, cavity, *organs, *inner, *spine)
    body = Body(ellipses, (), int(rng.integers(2**31)))
    return replace(body, lesions=(random_lesion(rng, body),))


def random_lesion(rng: np.random.Generator, body: Body) -> Ellipse:
    """A round spot of 10 to 24 mm inside one of the four largest organs."""
    organ = body.ellipses[3 + int(rng.integers(4))]
    turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5)
    x = organ.x + far * organ.a * np.cos(turn)
    y = organ.y + far * organ.b * np.sin(turn)
    radius = rng.uniform(5, 12)
    contrast = rng.uniform(40, 90) * rng.choice((-1, 1))
    return Ellipse(x, y, radius, radius * rng.uniform(0.8, 1), turn, organ.hu + contrast)


def _organs(rng: np.random.Generator, half: float, wide: float, high: float) -> list[Ellipse]:
    liver = Ellipse(-0.42 * wide, -0.1 * high, 0.42 * wide, 0.55 * high, 0.3, rng.uniform(50, 110))
    spleen = Ellipse(0.6 * wide, 0.05 * high, 0.17 * wide, 0.38 * high, -0.2, rng.uniform(50, 120))
    right = Ellipse(-0.3 * wide, 0.42 * high, 0.13 * wide, 0.24 * high, 0.3, rng.uniform(30, 180))
    left = Ellipse(0.33 * wide, 0.42 * high, 0.13 * wide, 0.24 * high, -0.3, right.hu)
    aorta = Ellipse(0.07 * wide, 0.25 * high, 0.05 * half, 0.05 * half, 0, rng.uniform(50, 250))
    vein = Ellipse(-0.09 * wide, 0.22 * high, 0.05 * half, 0.04 * half, 0, rng.uniform(50, 180))
    return [_changed(rng, one, half * 0.04, 0.12) for one in (liver, spleen, right, left)] + [
        _changed(rng, one, half * 0.02, 0.2) for one in (aorta, vein)
    ]


def _bowel(rng: np.random.Generator, wide: float, high: float, half: float) -> list[Ellipse]:
    loops = []
    for _ in range(int(rng.integers(4, 9))):
        wall = _inside(rng, wide, high, (0.06, 0.13), (20, 60), half)
        filling = rng.choice((-850.0, 10.0, 30.0, 250.0), p=(0.25, 0.3, 0.25, 0.2))
        loops += [wall, replace(wall, a=wall.a - 0.02 * half, b=wall.b - 0.02 * half, hu=filling)]
    return loops


def _spine(rng: np.random.Generator, half: float, high: float) -> list[Ellipse]:
    y, size = 0.62 * high, half * rng.uniform(0.11, 0.15)
    cortex = Ellipse(0, y, size, 0.8 * size, 0, rng.uniform(450, 900))
    marrow = replace(cortex, a=0.85 * size, b=0.65 * size, hu=rng.uniform(120, 260))
    canal = Ellipse(0, y + 1.1 * size, 0.45 * size, 0.35 * size, 0, rng.uniform(10, 40))
    arch = Ellipse(0, y + 1.1 * size, 0.8 * size, 0.7 * size, 0, rng.uniform(300, 700))
    return [arch, canal, cortex, marrow]


def _inside(
    rng: np.random.Generator,
    wide: float,
    high: float,
    radii: tuple[float, float],
    hu: tuple[float, float],
    half: float,
) -> Ellipse:
    """Anywhere in the cavity; radii as shares of half the field."""
    turn, far = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 1)) * 0.78
    a, b = rng.uniform(*radii, size=2) * half
    x, y = far * wide * np.cos(turn), far * high * np.sin(turn)
    return Ellipse(x, y, a, b, rng.uniform(0, np.pi), rng.uniform(*hu))


# ── other scans of the same body ────────────────────────────────────────────────────────────────


def later_scan(rng: np.random.Generator, body: Body, *, change: float = 1.0) -> Body:
    """The same body, another day: each part moves up to `change` mm and changes a little in size
    and HU; lesions are those of `body`."""
    return replace(
        body,
        ellipses=tuple(_changed(rng, one, change, 0.02 * change) for one in body.ellipses),
    )


def _changed(rng: np.random.Generator, one: Ellipse, mm: float, share: float) -> Ellipse:
    dx, dy = rng.uniform(-mm, mm, size=2)
    a, b = rng.uniform(1 - share, 1 + share, size=2)
    return replace(
        one, x=one.x + dx, y=one.y + dy, a=one.a * a, b=one.b * b, hu=one.hu + rng.normal(0, 3)
    )


# ── pictures ────────────────────────────────────────────────────────────────────────────────────


def draw(
    body: Body, size: int, pixel_mm: float, *, shift: tuple[float, float] = (0.0, 0.0)
) -> Array:
    """The slice in HU, [size, size]; `shift` moves the body, in mm to the right and down."""
    picture = np.full((size, size), AIR)
    for one in (*body.ellipses, *body.lesions):
        moved = replace(one, x=one.x + shift[0], y=one.y + shift[1])
        _paint(picture, moved, pixel_mm)
    mottle = _mottle(np.random.default_rng(body.texture), size)
    mottle = np.roll(mottle, (round(shift[1] / pixel_mm), round(shift[0] / pixel_mm)), (0, 1))
    picture += mottle * (picture > -400)
    return picture


def region(one: Ellipse, size: int, pixel_mm: float, *, grow: float = 1.0) -> NDArray[np.bool_]:
    """The pixels of an ellipse whose radii are multiplied by `grow`, [size, size]."""
    at = (np.arange(size) - size // 2) * pixel_mm
    return _distance(one, at, at[:, None], grow) < 1


def _paint(picture: Array, one: Ellipse, pixel_mm: float) -> None:
    """Over a picture, in the box around the ellipse; edges are a pixel wide."""
    size = len(picture)
    reach = max(one.a, one.b) / pixel_mm + 3
    x, y = one.x / pixel_mm + size // 2, one.y / pixel_mm + size // 2
    x0, x1 = (int(np.clip(v, 0, size)) for v in (x - reach, x + reach + 1))
    y0, y1 = (int(np.clip(v, 0, size)) for v in (y - reach, y + reach + 1))
    across = (np.arange(x0, x1) - size // 2) * pixel_mm
    down = (np.arange(y0, y1)[:, None] - size // 2) * pixel_mm
    outside = (_distance(one, across, down) - 1) * min(one.a, one.b) / pixel_mm
    cover = 1 / (1 + np.exp(np.clip(outside / _EDGE * 4, -30, 30)))
    box = picture[y0:y1, x0:x1]
    box += cover * (one.hu - box)


def _distance(
    one: Ellipse, x: NDArray[np.floating], y: NDArray[np.floating], grow: float = 1.0
) -> Array:
    """From the centre, 1 on the edge."""
    cosine, sine = np.cos(one.angle), np.sin(one.angle)
    along = (x - one.x) * cosine + (y - one.y) * sine
    across = (y - one.y) * cosine - (x - one.x) * sine
    distance: Array = np.hypot(along / (one.a * grow), across / (one.b * grow))
    return distance


def _mottle(rng: np.random.Generator, size: int) -> Array:
    """Smooth noise of 8 HU with grains of some pixels."""
    noise = np.fft.rfft2(rng.normal(size=(size, size)))
    across, down = np.fft.rfftfreq(size), np.fft.fftfreq(size)[:, None]
    smooth = np.fft.irfft2(noise * np.exp(-(across**2 + down**2) * 90), s=(size, size))
    grains: Array = smooth / smooth.std() * 8
    return grains
