"""ΔE: how far apart the colours of the same pixels look."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imageprompt.evaluation.metrics.contract import PixelMetric, Pixels
from imageprompt.evaluation.probing.measures import to_lab

Array = NDArray[np.float64]


# Rounded as in scikit-image, whose figures are compared with: the sixth digit depends on it.
_MATRIX = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def delta_e(picture: Pixels, reference: Pixels) -> float:
    """Mean CIEDE2000 difference of the pixels."""
    labs = (to_lab(pixels, _MATRIX, _WHITE) for pixels in (picture, reference))
    return float(ciede2000(*labs).mean())


def ciede2000(a: Array, b: Array) -> Array:
    """Differences of CIELAB colours [..., 3], with all weights 1."""
    chroma = (np.hypot(a[..., 1], a[..., 2]) + np.hypot(b[..., 1], b[..., 2])) / 2
    stretch = 1.5 - 0.5 * _saturation(chroma)  # a of greyish colours counts more
    chroma_a, hue_a = _polar(stretch * a[..., 1], a[..., 2])
    chroma_b, hue_b = _polar(stretch * b[..., 1], b[..., 2])
    grey = chroma_a * chroma_b == 0
    turn = np.where(grey, 0.0, (hue_b - hue_a + 180) % 360 - 180)
    hue = np.where(grey, hue_a + hue_b, (hue_a + turn / 2) % 360)
    chroma, light = (chroma_a + chroma_b) / 2, (a[..., 0] + b[..., 0]) / 2
    across = 2 * np.sqrt(chroma_a * chroma_b) * np.sin(np.radians(turn / 2))

    tone = (
        1
        - 0.17 * _cosine(hue - 30)
        + 0.24 * _cosine(2 * hue)
        + 0.32 * _cosine(3 * hue + 6)
        - 0.20 * _cosine(4 * hue - 63)
    )
    off = np.square(light - 50)
    light_part = (b[..., 0] - a[..., 0]) / (1 + 0.015 * off / np.sqrt(20 + off))
    chroma_part = (chroma_b - chroma_a) / (1 + 0.045 * chroma)
    hue_part = across / (1 + 0.015 * chroma * tone)
    blue = 60 * np.exp(-np.square((hue - 275) / 25))
    rotation = -2 * _saturation(chroma) * np.sin(np.radians(blue))
    total = light_part**2 + chroma_part**2 + hue_part**2 + rotation * chroma_part * hue_part
    difference: Array = np.sqrt(np.maximum(total, 0))
    return difference


def _polar(a: Array, b: Array) -> tuple[Array, Array]:
    """Chroma, and hue in degrees from 0 to 360."""
    return np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360


def _saturation(chroma: Array) -> Array:
    """Near 0 for greyish colours, near 1 for strong ones."""
    saturation: Array = np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    return saturation


def _cosine(degrees: Array) -> Array:
    cosine: Array = np.cos(np.radians(degrees))
    return cosine


METRIC = PixelMetric(
    name="delta-e",
    title="ΔE 2000",
    summary="difference of the colours, pixel by pixel; 1 is just visible",
    formula="mean CIEDE2000 of the pixels, all weights 1",
    source="Sharma, Wu and Dalal 2005; CIELAB (D65) of 8-bit sRGB",
    higher_is_better=False,
    range=(0, None),
    compare=delta_e,
    min_side=1,
)
