"""How sharp a picture is: the width of its sharpest edges, in its own pixels.

After Zhuo and Sim 2011 (doi 10.1016/j.patcog.2011.03.009): the gradient of a step edge blurred by a
Gaussian of standard deviation s is weakened by a second blur of deviation t by the factor
R = sqrt((s^2 + t^2) / s^2), whatever the height of the step; so s = t / sqrt(R^2 - 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EDGES = 0.02
"""Fraction of all pixels, those with the strongest gradients, that count as edges."""
FLAT = 2.0
"""Grey levels per pixel: a picture without a stronger gradient has no edges."""
WIDE, MIN_SIDE = 2.5, 96
"""Wider edges are measured again at half the size, if the picture has this many pixels a side."""
SHARPEST = 0.25
"""This quantile of the edge widths is the result: sharp parts count, not those out of focus."""


def edge_width(patches: Sequence[Array]) -> float | None:
    """Standard deviation in pixels of the blur of the sharpest edges in patches [H, W].

    Within a tenth of the truth from 1 to 8 pixels on photographs; noise counts as sharp. None
    without edges.
    """
    scale = 1
    while True:
        width = _width(patches)
        if width is None or width < WIDE or min(map(min, (p.shape for p in patches))) < MIN_SIDE:
            return None if width is None else width * scale
        patches, scale = [_half(patch) for patch in patches], scale * 2


def _width(patches: Sequence[Array], t: float = 1.0) -> float | None:
    before = np.concatenate([_gradient(patch).ravel() for patch in patches])
    after = np.concatenate([_gradient(_blurred(patch, t)).ravel() for patch in patches])
    if before.max(initial=0) < FLAT:
        return None
    strong = before >= max(np.quantile(before, 1 - EDGES), 0.1 * before.max())
    ratio = before[strong] / after[strong].clip(1e-6)
    widths = t / np.sqrt((ratio.clip(1.001, None)) ** 2 - 1)
    return float(np.quantile(widths, SHARPEST))


def _gradient(x: Array) -> Array:
    """Without the border, where the blur lacks neighbours."""
    rows, columns = np.gradient(x)
    length: Array = np.hypot(rows, columns)
    return length[4:-4, 4:-4]


def _blurred(x: Array, t: float) -> Array:
    reach = int(4 * t + 0.5)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / t) ** 2)
    bell /= bell.sum()
    for axis in (0, 1):
        padded = np.pad(x, [(reach, reach) if i == axis else (0, 0) for i in (0, 1)], "reflect")
        length = x.shape[axis]
        x = sum(
            weight * np.take(padded, range(i, i + length), axis) for i, weight in enumerate(bell)
        )
    return x


def _half(x: Array) -> Array:
    rows, columns = (side // 2 * 2 for side in x.shape)
    halved: Array = x[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean((1, 3))
    return halved
