"""SSIM: how alike the luminance, contrast and structure of small windows are."""

from __future__ import annotations

import numpy as np

from imageprompt.evaluation.metrics._structure import TAPS, structure
from imageprompt.evaluation.metrics.contract import PixelMetric, Pixels


def ssim(picture: Pixels, reference: Pixels) -> float:
    """Mean over the windows that lie inside, and over the channels."""
    similarity, _ = structure(picture.astype(np.float64), reference.astype(np.float64))
    return float(similarity.mean())


METRIC = PixelMetric(
    name="ssim",
    title="SSIM",
    summary="alike in small windows; for reconstruction, not for likeness",
    formula="mean of luminance · contrast · structure, Gaussian windows of 11 pixels (σ 1.5), "
    "variances of the window, borders left out",
    source="Wang et al. 2004; 8-bit sRGB, mean over the channels",
    higher_is_better=True,
    range=(-1, 1),
    compare=ssim,
    min_side=TAPS,
)
