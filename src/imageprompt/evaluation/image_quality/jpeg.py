"""How much JPEG has taken from a picture: by its file, and by traces in its pixels.

A file tells its quantisation tables. Pixels of a decoded JPEG tell the tables as well: their 8x8
cosine coefficients lie near multiples of the steps, also after a later, better compression or in a
PNG, as long as the picture was neither scaled nor turned since. Qualities are those of libjpeg's
scale 1..100, which most programs use.
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

# Low frequencies (row, column): they keep numbers that are not zero down to poor qualities.
_READ = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (0, 3), (1, 2), (2, 1), (3, 0), (2, 2))

LARGEST_STEP = 120
CLEAR = 0.5
"""Mean cos(2 pi c / step) from which a step counts as found: 1 on multiples, 0 anywhere."""
ENOUGH = 40
"""Coefficients a frequency must have beyond half a step."""
COARSER = 1.6
OUTLIER = 0.3
AGREE = 4
"""Frequencies in which a step must be found."""


@dataclass(frozen=True)
class Estimate:
    """A quality 1..100 on libjpeg's scale; `exact` where the tables are libjpeg's own."""

    quality: int
    exact: bool


def table(quality: int) -> Array:
    """libjpeg's luminance table [64], row by row, for a quality 1..100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((_LUMINANCE * scale + 50) // 100).clip(1, 255).astype(np.float64)


_TABLES = np.stack([table(quality) for quality in range(1, 101)])


def of_tables(tables: Mapping[int, Sequence[int]]) -> Estimate | None:
    """The quality that a file's quantisation tables stand for; the nearest for foreign tables."""
    if not tables:
        return None
    found = np.asarray(tables[min(tables)], np.float64)
    if found.shape != (64,):
        return None
    apart = np.abs(np.log(_TABLES) - np.log(found.clip(1, None))).mean(1)
    # several low qualities share a table of nothing but 255: the best of them is meant
    best = int(np.flatnonzero(apart == apart.min())[-1])
    return Estimate(best + 1, bool((_TABLES[best] == found).all()))


def of_pixels(patches: Sequence[Array], since: Sequence[int] | None = None) -> Estimate | None:
    """The quality of a compression that left its traces in patches [H, W] of a picture, 0..255.

    Patches lie at multiples of 8 in the picture. `since` is the file's own luminance table, where
    it is a JPEG: only what was clearly coarser can be told from it. None where there are no traces
    (a quality above 90 leaves none that are clear).
    """
    starts = [(0, 0)] if since is not None else [(0, 0), _grid(patches)]
    found = (_on_grid([patch[top:, left:] for patch in patches], since) for top, left in starts)
    return next((estimate for estimate in found if estimate is not None), None)


def _on_grid(patches: Sequence[Array], since: Sequence[int] | None) -> Estimate | None:
    coefficients = np.concatenate([_coefficients(patch) for patch in patches])
    steps: dict[int, int] = {}
    for row, column in _READ:
        place = row * 8 + column
        least = 2.0 if since is None else COARSER * since[place]
        found = _step(coefficients[:, row, column], least)
        if found:
            steps[place] = found
    if len(steps) < AGREE:
        return None
    places = list(steps)
    sizes = np.log(np.array([steps[place] for place in places], np.float64))
    apart = np.abs(np.log(_TABLES[:, places]) - sizes)
    distance = apart.clip(max=OUTLIER).mean(1)
    # neighbours may share all steps that were read: the middle one
    best = int(np.median(np.flatnonzero(distance == distance.min())) + 0.5)
    return Estimate(best + 1, bool((np.exp(apart[best]) < 1.01).all()))


def _step(c: Array, least: float) -> int:
    """The largest step whose multiples the coefficients lie on; 0 where there is none."""
    best, score = 0, CLEAR
    for step in range(math.ceil(least), LARGEST_STEP):
        beyond = c[np.abs(c) > step / 2]
        if len(beyond) < ENOUGH:
            break
        found = float(np.cos(2 * np.pi * beyond / step).mean())
        if found > score:
            best, score = step, found
    return best


def _grid(patches: Sequence[Array]) -> tuple[int, int]:
    """Where the first block starts: a cut moves the grid. Jumps between blocks show it."""
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
    """Orthonormal cosine transform of every 8x8 block, [blocks, 8, 8], as JPEG has it."""
    rows, columns = (side // 8 * 8 for side in grey.shape)
    blocks = grey[:rows, :columns].reshape(rows // 8, 8, columns // 8, 8) - 128
    k = np.arange(8)
    basis = np.cos((2 * k[None] + 1) * k[:, None] * np.pi / 16) * np.sqrt(2 / 8)
    basis[0] /= np.sqrt(2)
    found: Array = np.einsum("ui,aibj,vj->abuv", basis, blocks, basis, optimize=True)
    return found.reshape(-1, 8, 8)
