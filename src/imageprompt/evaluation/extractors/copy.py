"""Copies: is one picture made from another by cropping, filtering, compressing?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imageprompt.evaluation.extractors._weights import identity
from imageprompt.evaluation.extractors.contract import Backbone

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.evaluation.metrics.contract import Rows

SIDE, KEPT = 32, 8
"""Of the picture that is transformed, and of the low frequencies that are kept."""


class CopyRole:
    """SSCD's embedding; without its weights a perceptual hash."""

    name = "copy"
    summary = (
        "SSCD, sscd_disc_mixup.torchvision.pt (no TorchScript); default: pHash, 64 bits, which "
        "finds recompressed and resized copies, not mirrored or cropped ones"
    )

    def open(self, source: str | None, *, device: str | None = None) -> Backbone:
        if source is None:
            return PerceptualHash()
        from imageprompt.evaluation.extractors._sscd import Sscd

        return Sscd(source, device)


class PerceptualHash:
    """Pictures -> 64 signs, whose cosine is 1 - 2d/64 if d of them differ."""

    name = "pHash (64 bits)"
    preprocessing = f"luma (ITU-R 601), {SIDE}x{SIDE}, aspect ratio not kept, Lanczos, 8 bits"
    width = KEPT**2
    fingerprint = identity("pHash", preprocessing)

    def encode(self, pictures: Sequence[Image]) -> Rows:
        return np.stack([_signs(picture) for picture in pictures])


def _signs(picture: Image) -> Rows:
    """+1 for each low frequency of the cosine transform above their median, else -1."""
    from PIL import Image

    grey = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    at = np.arange(SIDE)
    waves = np.cos(np.pi * np.arange(KEPT)[:, None] * (2 * at + 1) / (2 * SIDE))
    low = waves @ np.asarray(grey, np.float64) @ waves.T
    return np.where(low > np.median(low), 1, -1).astype(np.float32).ravel()


EXTRACTOR = CopyRole()
