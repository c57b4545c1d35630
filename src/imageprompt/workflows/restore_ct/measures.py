"""How good a restored slice is, by HU window, and whether it shows lesions that are not there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imageprompt.evaluation.metrics.psnr import psnr
from imageprompt.evaluation.metrics.ssim import ssim

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Window:
    """The HU that a picture shows from black to white."""

    centre: float
    width: float

    def shown(self, hu: Array) -> NDArray[np.float64]:
        """Grey values, 0..255, not rounded; what lies outside is clipped."""
        low = self.centre - self.width / 2
        grey: NDArray[np.float64] = (hu.astype(np.float64) - low) * (255 / self.width)
        grey = np.clip(grey, 0, 255)
        return grey


WINDOWS = {
    "abdomen": Window(50, 400),
    "chest": Window(-600, 1500),
    "head": Window(40, 80),
}


def likeness(found: Array, truth: Array, window: Window) -> tuple[float, float]:
    """PSNR in dB and SSIM of a slice [h, w] in HU; both are clipped to the window first."""
    a, b = window.shown(found)[..., None], window.shown(truth)[..., None]
    return psnr(a, b), ssim(a, b)  # type: ignore[arg-type]


def contrast(hu: Array, inside: NDArray[np.bool_], around: NDArray[np.bool_]) -> float:
    """Mean HU of a region less that of the ring around it."""
    return float(hu[inside].mean() - hu[around & ~inside].mean())
