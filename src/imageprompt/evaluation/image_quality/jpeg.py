"""How strongly a picture was compressed as JPEG: from its file, and from traces in its pixels.

A JPEG file stores its quantisation tables. The pixels of a decoded JPEG reveal them too: their 8x8
cosine coefficients lie near multiples of the quantisation steps, even after a later, better
compression or in a PNG, as long as the picture was neither scaled nor rotated since. Qualities are
on libjpeg's scale 1..100, which most programs use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# ITU T.81, annex K: the luminance table at quality 50, row by row.
_LUMINANCE = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61),
        *(12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56),
        *(14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77),
        *(24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101),
        *(72, 92, 95, 98, 112, 100, 103, 99),
    ]
)

# Low frequencies (row, column): their coefficients are not all zero even at poor qualities.
_READ = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (0, 3), (1, 2), (2, 1), (3, 0), (2, 2))

LARGEST_STEP = 120
MIN_SCORE = 0.5
"""Mean cos(2 pi c / step) from which a step counts as found: 1 on multiples, 0 elsewhere."""
MIN_COEFFICIENTS = 40
"""Coefficients that a frequency must have beyond half a step."""
COARSER = 1.6
"""Factor by which an earlier table must be coarser than the file's own to be found."""
OUTLIER = 0.3
MIN_FREQUENCIES = 4
"""Frequencies in which a step must be found."""


@dataclass(frozen=True)
class JpegQuality:
    """A quality 1..100 on libjpeg's scale; `exact` if the tables are libjpeg's own."""

    quality: int
    exact: bool


def luminance_table(quality: int) -> Array:
    """libjpeg's luminance table [64], row by row, for a quality 1..100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((_LUMINANCE * scale + 50) // 100).clip(1, 255).astype(np.float64)


_TABLES = np.stack([luminance_table(quality) for quality in range(1, 101)])


def from_tables(tables: Mapping[int, Sequence[int]]) -> JpegQuality | None:
    """The quality of a file's quantisation tables; the nearest one for tables of other encoders."""
    if not tables:
        return None
    found = np.asarray(tables[min(tables)], np.float64)
    if found.shape != (64,):
        return None
    apart = np.abs(np.log(_TABLES) - np.log(found.clip(1, None))).mean(1)
    # several low qualities share a table of only 255: take the best of them
    best = int(np.flatnonzero(apart == apart.min())[-1])
    return JpegQuality(best + 1, bool((_TABLES[best] == found).all()))


def from_pixels(patches: Sequence[Array], since: Sequence[int] | None = None) -> JpegQuality | None:
    """The quality of a compression that left traces in patches [H, W] of a picture, 0..255.

    Patches lie at multiples of 8 pixels in the picture. `since` is the luminance table of the file
    itself, if it is a JPEG: only a clearly coarser compression can be told from it. None without
    traces (a quality above 90 leaves none that are clear).
    """
    starts = [(0, 0)] if since is not None else [(0, 0), _grid(patches)]
    found = (_on_grid([patch[top:, left:] for patch in patches], since) for top, left in starts)
    return next((estimate for estimate in found if estimate is not None), None)


def _on_grid(patches: Sequence[Array], since: Sequence[int] | None) -> JpegQuality | None:
    coefficients = np.concatenate([_coefficients(patch) for patch in patches])
    steps: dict[int, int] = {}
    for row, column in _READ:
        place = row * 8 + column
        least = 2.0 if since is None else COARSER * since[place]
        found = _step(coefficients[:, row, column], least)
        if found:
            steps[place] = found
    if len(steps) < MIN_FREQUENCIES:
        return None
    places = list(steps)
    sizes = np.log(np.array([steps[place] for place in places], np.float64))
    apart = np.abs(np.log(_TABLES[:, places]) - sizes)
    distance = apart.clip(max=OUTLIER).mean(1)
    # neighbouring qualities may share all steps that were found: take the middle one
    best = int(np.median(np.flatnonzero(distance == distance.min())) + 0.5)
    return JpegQuality(best + 1, bool((np.exp(apart[best]) < 1.01).all()))


def _step(c: Array, least: float) -> int:
    """The largest step on whose multiples the coefficients lie; 0 if there is none."""
    best, score = 0, MIN_SCORE
    for step in range(math.ceil(least), LARGEST_STEP):
        beyond = c[np.abs(c) > step / 2]
        if len(beyond) < MIN_COEFFICIENTS:
            break
        found = float(np.cos(2 * np.pi * beyond / step).mean())
        if found > score:
            best, score = step, found
    return best


def _grid(patches: Sequence[Array]) -> tuple[int, int]:
    """Where the first 8x8 block starts: a crop moves the grid. Jumps between blocks reveal it."""
    starts = []
    for axis in (0, 1):
        jumps = np.zeros(8)
        for patch in patches:
            x = np.moveaxis(patch, axis, 0)
            step = np.abs(np.diff(x, axis=0)).mean(1)
            excess = step[1:-1] - (step[:-2] + step[2:]) / 2  # of the step from row i + 1 to i + 2
            for phase in range(8):
                here = excess[phase::8]
                jumps[(phase + 2) % 8] += here.sum() / max(len(here), 1)
        starts.append(int(jumps.argmax()))
    return starts[0], starts[1]


def _coefficients(grey: Array) -> Array:
    """Orthonormal cosine transform of every 8x8 block, [blocks, 8, 8], as in JPEG."""
    rows, columns = (side // 8 * 8 for side in grey.shape)
    blocks = grey[:rows, :columns].reshape(rows // 8, 8, columns // 8, 8) - 128
    k = np.arange(8)
    basis = np.cos((2 * k[None] + 1) * k[:, None] * np.pi / 16) * np.sqrt(2 / 8)
    basis[0] /= np.sqrt(2)
    found: Array = np.einsum("ui,aibj,vj->abuv", basis, blocks, basis, optimize=True)
    return found.reshape(-1, 8, 8)
