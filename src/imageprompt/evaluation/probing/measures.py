"""How two pictures differ in colour, texture and layout: plain statistics without a model.

Each measure is a distance, 0 between equal pictures, designed to ignore what the others measure:
colour ignores positions, texture ignores positions and most of the colour, layout ignores colour.
Pictures are compared at 64 pixels on the longer side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 64
"""Pixels on the longer side of the compared pictures."""

Array = NDArray[np.float64]

TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
"""Linear sRGB to XYZ (IEC 61966-2-1, D65)."""
_FLAT = 1e-6
"""Lab gradients below this are rounding errors."""
_TEXTURE_BLURS = (0.7, 1.4, 2.8)
_DIRECTIONS = 4
_EDGE_BLURS = (1.0, 1.5)
"""Standard deviations in pixels: before edges are detected, and after."""


@dataclass(frozen=True)
class PictureStatistics:
    """Of one picture: Lab mean [3] and covariance [3, 3], texture [12], edges [h, w]."""

    mean: Array
    covariance: Array
    texture: Array
    edges: Array


def picture_statistics(picture: Image, size: tuple[int, int] | None = None) -> PictureStatistics:
    """The statistics of one picture, scaled to the shape of `size` (width, height) if given."""
    lab = to_lab(_reduced(picture, size or picture.size))
    flat = lab.reshape(-1, 3)
    return PictureStatistics(flat.mean(0), np.cov(flat.T), _texture(lab[..., :1]), _edges(lab))


def colour(a: PictureStatistics, b: PictureStatistics) -> float:
    """Fréchet distance of the colours as normal distributions in CIELAB; 2.3 is just visible."""
    return _frechet(a.mean, a.covariance, b.mean, b.covariance)


def colours_apart(a: Array, b: Array) -> float:
    """The same for two sets of CIELAB colours [n, 3] and [m, 3]."""
    return _frechet(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))


def _frechet(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    root = matrix_root(cov_a)
    shared = np.trace(matrix_root(root @ cov_b @ root))
    apart = np.square(mean_a - mean_b).sum()
    spread = np.trace(cov_a) + np.trace(cov_b) - 2 * shared
    return float(np.sqrt(max(apart + spread, 0.0)))


def texture(a: PictureStatistics, b: PictureStatistics) -> float:
    """Root mean square difference of the logarithms of edge energy by scale and direction.

    Energies are shares of the total, so contrast does not count.
    """
    return float(np.sqrt(np.square(a.texture - b.texture).mean()))


def layout(a: PictureStatistics, b: PictureStatistics) -> float:
    """1 - correlation of the blurred edges, whatever their colour: where things are and end."""
    x, y = a.edges - a.edges.mean(), b.edges - b.edges.mean()
    spread_x, spread_y = np.sqrt(np.square(x).mean()), np.sqrt(np.square(y).mean())
    if min(spread_x, spread_y) < _FLAT:
        return float(max(spread_x, spread_y) >= _FLAT)
    return float(1 - (x * y).mean() / (spread_x * spread_y))


MEASURES: Mapping[str, Callable[[PictureStatistics, PictureStatistics], float]] = {
    "colour": colour,
    "texture": texture,
    "layout": layout,
}


def to_lab(rgb: NDArray[np.uint8], matrix: Array = TO_XYZ, white: Array | None = None) -> Array:
    """sRGB bytes [..., 3] to CIELAB (D65): L 0..100, a and b about -100..100.

    `white` is the XYZ of white; by default that of the matrix, so that greys have no colour.
    """
    value = rgb.astype(np.float64) / 255
    linear = np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    xyz = linear @ matrix.T / (matrix.sum(1) if white is None else white)
    bent = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(bent, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _reduced(picture: Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture as uint8 [h, w, 3] in the proportions of `size`, 64 on the longer side."""
    from PIL import Image as Pillow

    factor = SIDE / max(size)
    width, height = (max(round(length * factor), 8) for length in size)
    return np.asarray(picture.convert("RGB").resize((width, height), Pillow.Resampling.BOX))


def _texture(channels: Array) -> Array:
    """Logarithms of shares of edge energy, [scales * directions]; opposite directions are equal."""
    energies = []
    for blur in _TEXTURE_BLURS:
        across, down = _gradients(_blurred(channels, blur))
        angle, energy = np.arctan2(down, across), across**2 + down**2
        for direction in range(_DIRECTIONS):
            nearness = np.cos(2 * (angle - np.pi * direction / _DIRECTIONS))
            energies.append((energy * np.maximum(nearness, 0)).sum())
    total = max(sum(energies), _FLAT)
    logarithms: Array = np.log(np.asarray(energies) / total + 1e-3)
    return logarithms


def _edges(lab: Array) -> Array:
    """Blurred edge strength [h, w] over the three channels."""
    before, after = _EDGE_BLURS
    across, down = _gradients(_blurred(lab, before))
    strength = np.sqrt((across**2 + down**2).sum(-1, keepdims=True))
    return _blurred(strength, after)[..., 0]


def _gradients(x: Array) -> tuple[Array, Array]:
    """Central differences across and down; 0 at the border."""
    across, down = np.zeros_like(x), np.zeros_like(x)
    across[:, 1:-1] = (x[:, 2:] - x[:, :-2]) / 2
    down[1:-1] = (x[2:] - x[:-2]) / 2
    return across, down


def _blurred(x: Array, deviation: float) -> Array:
    """[h, w, c] blurred by a Gaussian, renormalised at the border."""
    rows, columns = _gaussian(x.shape[0], deviation), _gaussian(x.shape[1], deviation)
    blurred: Array = np.moveaxis(rows @ np.moveaxis(x, -1, 0) @ columns.T, 0, -1)
    return blurred


@cache
def _gaussian(length: int, deviation: float) -> Array:
    """The blur along one axis, as a matrix whose rows sum to 1."""
    at = np.arange(length)
    weight = np.exp(-np.square(at[:, None] - at) / (2 * deviation**2))
    matrix: Array = weight / weight.sum(1, keepdims=True)
    return matrix


def matrix_root(matrix: Array) -> Array:
    """Square root of a symmetric positive matrix; eigenvalues below 0 are rounding errors."""
    values, vectors = np.linalg.eigh(matrix)
    root: Array = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root
