"""Local structure of two pictures in Gaussian windows: what SSIM and MS-SSIM share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TAPS, DEVIATION = 11, 1.5
"""Of the window, in pixels."""
_LUMINANCE, _CONTRAST = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""The constants that keep flat windows from dividing by 0."""
_AT = np.arange(TAPS) - TAPS // 2
_WEIGHTS = np.exp(-np.square(_AT) / (2 * DEVIATION**2))
_WEIGHTS /= _WEIGHTS.sum()


def structure(a: Array, b: Array) -> tuple[Array, Array]:
    """SSIM, and its factor for contrast and structure, of each window inside two pictures.

    [h, w, c] -> [h - 10, w - 10, c] twice. Variances are those of the window itself, not estimates
    from a sample.
    """
    mean_a, mean_b = _smoothed(a), _smoothed(b)
    squares, product = mean_a**2 + mean_b**2, mean_a * mean_b
    spread = _smoothed(a * a) + _smoothed(b * b) - squares
    shared = _smoothed(a * b) - product
    contrast: Array = (2 * shared + _CONTRAST) / (spread + _CONTRAST)
    luminance = (2 * product + _LUMINANCE) / (squares + _LUMINANCE)
    return luminance * contrast, contrast


def _smoothed(x: Array) -> Array:
    """The Gaussian mean of every window that lies inside, [h - 10, w - 10, c]."""
    height, width = (length - TAPS + 1 for length in x.shape[:2])
    rows = sum(weight * x[k : k + height] for k, weight in enumerate(_WEIGHTS))
    smoothed: Array = sum(weight * rows[:, k : k + width] for k, weight in enumerate(_WEIGHTS))
    return smoothed
