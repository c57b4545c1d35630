"""PSNR: how large the difference of the pixels is."""

from __future__ import annotations

import math

import numpy as np

from imageprompt.evaluation.metrics.contract import PixelMetric, Pixels


def psnr(picture: Pixels, reference: Pixels) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels; infinite if all are equal."""
    difference = picture.astype(np.float64) - reference
    error = float(np.square(difference).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


METRIC = PixelMetric(
    name="psnr",
    title="PSNR (dB)",
    summary="difference of the pixels; for reconstruction, not for likeness",
    formula="10 log10(255² / mean squared difference)",
    source="8-bit sRGB, all channels together",
    higher_is_better=True,
    range=(0, None),
    compare=psnr,
)
