"""How sharp a picture is: the width of its sharpest edges, in its own pixels.

After Zhuo and Sim 2011 (doi 10.1016/j.patcog.2011.03.009): an edge that is a step blurred by a
Gaussian of deviation s has a gradient that another blur of deviation t weakens by
R = sqrt((s^2 + t^2) / s^2), whatever its height; so s = t / sqrt(R^2 - 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EDGES = 0.02
"""The strongest gradients are looked at, this share of all pixels."""
FLAT = 2.0
"""Grey levels a pixel: a picture without a stronger gradient has no edges."""
WIDE, LEAST = 2.5, 96
"""Wider edges are measured again at half the size, while the picture is not smaller than that."""
SHARPEST = 0.25
"""What is sharp counts, not what is out of focus: this quantile of the edges' widths."""


def edge_width(patches: Sequence[Array]) -> float | None:
    """Deviation in pixels of the blur on the sharpest edges of patches [H, W] of a picture.

    Within a tenth of the truth from 1 to 8 pixels on photographs; noise looks sharp. None where
    there are no edges.
    """
    scale = 1
    while True:
        width = _width(patches)
        if width is None or width < WIDE or min(map(min, (p.shape for p in patches))) < LEAST:
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
    """Without the rim, where the blur has no neighbours."""
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
