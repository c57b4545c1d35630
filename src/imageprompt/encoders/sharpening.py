"""Sharpening of what an encoder sees, as ComfyUI_IPAdapter_plus does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def sharpened(picture: Image, amount: float) -> Image:
    """Contrast-adaptive sharpening (AMD's CAS as ComfyUI_IPAdapter_plus has it), in 8 bit.

    Each pixel gains contrast against its four neighbours, by how much room the brightest and the
    darkest of its nine leave; black beyond the edges, where it therefore changes nothing.
    """
    import numpy as np
    from PIL import Image as Images

    x = np.asarray(picture, np.float32) / 255
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[:2]
    near = {(i, j): padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)}
    cross = [near[at] for at in ((0, 1), (1, 0), (1, 1), (1, 2), (2, 1))]
    corners = [near[at] for at in ((0, 0), (0, 2), (2, 0), (2, 2))]
    low = np.minimum.reduce(cross) + np.minimum.reduce(corners)
    high = np.maximum.reduce(cross) + np.maximum.reduce(corners)
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.sqrt(np.minimum(low, 2 - high) / high)
        weight = -room * np.float32(amount * (1 / 5 - 1 / 8) + 1 / 8)
        around = near[0, 1] + near[1, 0] + near[1, 2] + near[2, 1]
        found = np.nan_to_num((around * weight + x) / (1 + 4 * weight)).clip(0, 1)
    return Images.fromarray(np.round(found * 255).astype(np.uint8))
