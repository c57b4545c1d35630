"""MS-SSIM: SSIM at five scales."""

from __future__ import annotations

import math

import numpy as np

from imageprompt.evaluation.metrics._structure import TAPS, Array, structure
from imageprompt.evaluation.metrics.contract import PixelMetric, Pixels

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, the finest first."""
MIN_SIDE = TAPS * 2 ** (len(WEIGHTS) - 1)
"""The window must fit into the smallest scale."""


def ms_ssim(picture: Pixels, reference: Pixels) -> float:
    """Contrast and structure at each scale but the last, whole SSIM there; below 0 counts as 0."""
    a, b = picture.astype(np.float64), reference.astype(np.float64)
    factors = []
    for _ in WEIGHTS[1:]:
        _, contrast = structure(a, b)
        factors.append(float(contrast.mean()))
        a, b = _halved(a), _halved(b)
    similarity, _ = structure(_mirrored(a), _mirrored(b))
    factors.append(float(similarity.mean()))
    powers = zip(factors, WEIGHTS, strict=True)
    return math.prod(float(max(factor, 0) ** weight) for factor, weight in powers)


def _halved(x: Array) -> Array:
    """Means of 2 x 2 pixels; an odd row or column at the end is left out."""
    height, width, channels = x.shape
    even = x[: height // 2 * 2, : width // 2 * 2]
    halved: Array = even.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))
    return halved


def _mirrored(x: Array) -> Array:
    """With a border, so that every pixel has a window."""
    border = TAPS // 2
    return np.pad(x, ((border, border), (border, border), (0, 0)), mode="reflect")


METRIC = PixelMetric(
    name="ms-ssim",
    title="MS-SSIM",
    summary="alike in windows of five scales; for reconstruction, not for likeness",
    formula="product of contrast · structure at 5 scales and luminance at the last, to the powers "
    "0.0448, 0.2856, 0.3001, 0.2363, 0.1333; borders mirrored at the last scale",
    source="Wang et al. 2003, as torchmetrics has it; 8-bit sRGB, mean over the channels",
    higher_is_better=True,
    range=(0, 1),
    compare=ms_ssim,
    min_side=MIN_SIDE,
)
